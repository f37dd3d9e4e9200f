"""The page beside a real router: what it shows is what happens."""

import re
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from tests.status.browser import requested
from tests.status.load import loaded


def counted(deployment, name, label):
    """Return what /metrics says of a counter, by its label."""
    text = httpx.get(f"{deployment.url}metrics").text
    return {
        sample.labels[label]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def totals(page, table):
    return {name: int(cells[-1].replace(",", "")) for name, cells in page.table(table).items()}


def test_numbers_are_those_of_the_metrics(page, deployment):
    with loaded(deployment.router.address, deployment.synapse) as load:
        page.wait_until(lambda: load.sent > 20, "there is some load")
        page.open(deployment.url)
        assert page.text("requests") != "0"  # at the first look already
        page.look_until(lambda: page.looks >= 3, "there are rates")
        page.look_until(
            lambda: all(
                totals(page, "requests")[name] for name in ("cache", "whoami", "rejected", "none")
            ),
            "sources appear",
        )
        shown = sum(float(cells[0]) for cells in page.table("requests").values())
        sent = load.sent / (time.monotonic() - load.started)
        assert sent / 3 < shown < sent * 3  # the one of the last ten seconds, the other of all
    page.look()
    resolves = counted(deployment, "whoami_router_resolves_total", "source")
    lookups = counted(deployment, "whoami_router_lookups_total", "outcome")
    assert totals(page, "requests") == resolves
    assert totals(page, "lookups") == lookups
    assert sum(resolves.values()) == load.sent
    assert page.text("requests") == f"{load.sent:,}"
    hits = resolves["cache"] / (load.sent - resolves["none"])
    assert abs(float(page.text("hits").rstrip("%")) - 100 * hits) <= 0.1
    remembered = httpx.get(f"{deployment.url}metrics").text
    owners = int(
        float(re.search(r"^whoami_router_remembered_owners (\S+)", remembered, re.MULTILINE)[1])
    )
    assert f"{owners:,} of 100,000" in page.text("m-owners")
    for chart, colour in (
        ("requests", "area blue calm"),
        ("hits", "line blue"),
        ("latency", "line blue"),
        ("lookups", "area teal calm"),
        ("memory", "line blue"),
    ):
        assert page.drawn(chart)[colour].startswith("M"), chart


def test_synapse_that_goes_away_and_comes_back_is_said(page, deployment):
    with loaded(deployment.router.address, deployment.synapse) as load:
        page.open(deployment.url)
        page.look_until(lambda: page.headline == "All is well.", "all is well")
        page.look_until(lambda: "Synapse answered" in page.details, "lookups are seen")

        load.synapse.answer = Response(status_code=503)
        page.look_until(lambda: page.tone == "bad", "the page notices")
        assert re.fullmatch(
            re.escape(f"Synapse at {deployment.synapse_url} is left alone since ")
            + r"\d\d:\d\d:\d\d: known users keep their worker, new tokens are routed one by one\.",
            page.headline,
        )
        assert page.driver.title == "Trouble: whoami-router"
        assert "left alone" in page.text("urls")
        page.look_until(lambda: "went by a fallback" in page.details, "fallbacks are counted")
        page.look_until(lambda: totals(page, "requests")["fingerprint"], "the source appears")

        load.synapse.answer = None
        page.look_until(lambda: page.tone == "good", "the page notices")
        assert re.fullmatch(
            re.escape(f"All is well again. Synapse at {deployment.synapse_url} is back since ")
            + r"\d\d:\d\d:\d\d, after \d+ s\.",
            page.headline,
        )
        assert "lost 1 time since the start" in page.text("urls")
        assert page.run("return document.querySelectorAll('#c-requests .away').length") > 0


def test_router_that_is_stopped_is_said_and_nothing_is_forgotten(page, deployment):
    with loaded(deployment.router.address, deployment.synapse):
        page.open(deployment.url)
        page.look_until(lambda: page.looks >= 3, "there is some history")
        known = page.text("requests")
        deployment.router.stop()
        page.look_until(lambda: page.tone == "bad", "the page notices")
        assert re.fullmatch(r"No answer from whoami-router since \d\d:\d\d:\d\d\.", page.headline)
        assert "keeps trying" in page.details
        assert page.text("requests") >= known

        deployment.router.start()
        page.look_until(lambda: page.tone == "good", "the page notices")
        assert "whoami-router was started again" in page.headline
        page.look_until(lambda: page.run("return page.points.at(-1).grown !== null"), "it goes on")
        # Two stretches with a gap between them.
        assert page.drawn("requests")["line blue"].count("M") == 2
        assert page.run("return document.querySelectorAll('#c-requests .silent').length") > 0
        assert page.run("return document.querySelectorAll('#c-requests .restart').length") == 1


def test_asks_for_nothing_but_itself_and_its_metrics(page, deployment):
    with loaded(deployment.router.address, deployment.synapse):
        page.open(deployment.url)
        page.wait_until(lambda: page.looks >= 2, "it looks again by itself")
    assert set(requested(page.driver)) == {deployment.url, f"{deployment.url}metrics"}
    assert page.driver.get_log("browser") == []
    assert "default-src 'none'" in httpx.get(deployment.url).headers["content-security-policy"]
