"""The page wherever it is looked at: on a phone, in the dark, behind a proxy, without a mouse."""

from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.by import By

from tests.nginx.own import own_nginx
from tests.status.answers import METRICS
from tests.status.browser import requested, scheme, viewport
from tests.status.conftest import PAGE

CONTRAST = Path(__file__).with_name("contrast.js")


@pytest.mark.parametrize("size", [(360, 640), (600, 900), (1200, 900), (2400, 1200)])
def test_page_is_never_wider_than_the_screen(page, canned, size):
    canned.text = METRICS
    viewport(page.driver, *size)
    page.open(canned.status_url)
    page.look()
    page.look()  # there are charts now
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    outside = """const seen = document.querySelectorAll("header *, main *");
        return [...seen].filter((each) => !each.closest(".hidden"))
            .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5)
            .map((each) => each.outerHTML)"""
    assert page.run(outside) == []


@pytest.mark.parametrize("tone", ["good", "warn", "bad", "wait"])
def test_light_and_dark_are_both_readable(page, canned, tone):
    canned.text = METRICS
    page.open(canned.status_url)
    page.look()
    page.run("document.getElementById('verdict').dataset.tone = arguments[0]", tone)
    page.run("document.getElementById('shed-now').classList.add('look')")
    background = "return getComputedStyle(document.body).backgroundColor"
    colours = {}
    for name in ("light", "dark"):
        scheme(page.driver, name)
        colours[name] = page.run(background)
        contrasts = page.run(CONTRAST.read_text())
        assert len(contrasts) > 60
        assert [each for each in contrasts if each[0] < 4.5] == []
    assert colours["light"] != colours["dark"]


def test_page_works_behind_a_prefix_with_and_without_its_slash(page, canned):
    canned.text = METRICS
    http = f"""
    server {{
        listen 8080;
        location = /matrix/router {{ proxy_pass {canned.status_url}; }}
        location /matrix/router/ {{ proxy_pass {canned.status_url}; }}
    }}"""
    with own_nginx(http, files={}) as (client, _):
        for path in ("/matrix/router", "/matrix/router/"):
            page.open(f"{client.base_url.join(path)}")
            assert page.text("requests") == "12,304"
            assert page.run("return document.getElementById('link').href").endswith(
                "/matrix/router/metrics"
            )
        assert {httpx.URL(url).path for url in requested(page.driver)} == {
            "/matrix/router",
            "/matrix/router/",
            "/matrix/router/metrics",
        }


def test_page_is_small_and_needs_nothing_else():
    text = PAGE.read_text()
    assert len(text.encode()) < 60_000
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in text


@pytest.mark.parametrize("name", ["light", "dark"])
def test_picture_for_readers_of_the_readme_is_there_and_small(name):
    picture = Path(__file__).parents[2] / f"docs/status-{name}.png"
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert int.from_bytes(header[16:20]) == 1200  # pixels wide
    assert picture.stat().st_size < 200_000


def test_page_can_be_read_without_seeing_it(page, canned):
    canned.text = METRICS
    page.open(canned.status_url)
    page.look()
    for chart in page.driver.find_elements(By.CSS_SELECTOR, ".chart"):
        assert chart.aria_role in ("image", "img")
        assert "the last" in chart.accessible_name
    for meter in page.driver.find_elements(By.CSS_SELECTOR, "[role=meter]"):
        assert meter.accessible_name
        assert float(meter.get_attribute("aria-valuenow")) <= float(
            meter.get_attribute("aria-valuemax")
        )
    headings = [each.text for each in page.driver.find_elements(By.CSS_SELECTOR, "h1, h2")]
    assert headings == [
        *("whoami-router", "Requests by source", "Hit ratio", "Lookup latency"),
        *("Lookups by outcome", "Remembered", "Synapse", "Process"),
    ]
    assert page.driver.find_element(By.ID, "headline").get_attribute("role") == "status"


def test_sentence_is_written_once_as_long_as_it_is_true(page, canned):
    """A screen reader says whatever is written there, also if it is the same again."""
    canned.text = METRICS
    page.open(canned.status_url)
    page.run(
        """window.written = 0;
        const all = { childList: true, characterData: true, subtree: true };
        new MutationObserver(() => { written += 1; }).observe($("headline"), all);"""
    )
    page.look()
    page.look()
    assert page.run("return written") == 0
    canned.text = METRICS.replace("} 0\n", "} 1\n")
    page.look()
    assert page.run("return written") == 1


def test_numbers_beside_a_chart_are_those_one_points_at(page, canned):
    canned.text = METRICS
    page.open(canned.status_url)
    page.look()
    canned.text = METRICS.replace('{source="cache"} 12000', '{source="cache"} 13000')
    page.look()
    shown = page.table("requests")["cache"]
    assert shown[0] != "0"
    point = """const chart = document.getElementById("c-hits");
        const { left, top, width } = chart.getBoundingClientRect();
        const [from, to] = span();
        const x = LEFT + (page.points[1].time - from) / (to - from) * (width - LEFT - RIGHT);
        const place = { clientX: left + x, clientY: top + 20 };
        chart.dispatchEvent(new PointerEvent("pointermove", place));"""
    page.run(point)
    page.wait_until(lambda: page.table("requests")["cache"][0] == "0", "the numbers are older ones")
    heading = "return document.querySelector('#t-requests thead th:nth-child(2)').textContent"
    assert page.run(f"{heading} === clock(page.points[1].time)")
    page.run("document.getElementById('c-hits').dispatchEvent(new PointerEvent('pointerleave'))")
    page.wait_until(lambda: page.run(heading) == "now", "the numbers are new again")


def test_hidden_tab_tells_trouble_and_is_up_to_date_when_it_is_seen(page, canned):
    canned.text = METRICS
    page.open(canned.status_url)
    assert page.driver.title == "Look: whoami-router"
    page.driver.minimize_window()
    try:
        page.wait_until(lambda: page.run("return document.hidden"), "the page is hidden")
        canned.text = METRICS.replace("} 0\n", "} 1\n").replace("} 12000", "} 13000")
        page.look_until(lambda: page.driver.title == "Trouble: whoami-router", "its title says it")
        assert page.text("requests") == "12,304"  # nothing is drawn that nobody sees
        canned.text = METRICS.replace("} 12000", "} 14000")
    finally:
        page.driver.set_window_rect(0, 0, 1200, 900)
    # Hidden, it would look again in ten seconds only.
    page.wait_until(lambda: page.text("requests") == "14,304", "it has looked", seconds=5)
