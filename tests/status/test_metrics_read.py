"""Whatever /metrics says, and however it says it, the page shows what can be shown."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from tests.fake_synapse import served
from tests.status.answers import METRICS
from tests.status.conftest import PAGE

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def test_odd_labels_are_text_and_nothing_else(page, canned):
    escaped = HOSTILE.replace("\\", "\\\\").replace('"', '\\"')
    canned.text = METRICS + "".join(
        f'whoami_router_resolves_total{{source="{source}"}} 7\n'
        for source in (
            escaped,
            "__proto__",
            "constructor",
            "a}b",
            'c,d=\\"e\\"',
            "f\\\\g\\nh",
            "ünï",
        )
    )
    canned.text += f'whoami_router_synapse_away{{url="{escaped}"}} 1\n'
    page.open(canned.status_url)
    page.look()
    rows = page.table("requests")
    assert "cache" in rows
    # Five with a row of their own, the rest together; the sums are of all.
    assert rows["2 others"][-1] == "14"
    assert {name for name in rows if rows[name][-1] == "7"} <= {
        *(HOSTILE, "__proto__", "constructor", "a}b", 'c,d="e"', "f\\g\nh", "ünï")
    }
    assert page.text("requests") == f"{12304 + 7 * 7:,}"
    assert HOSTILE in page.text("urls")
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.driver.get_log("browser") == []


@pytest.mark.parametrize(
    "text",
    [
        'whoami_router_build_info{version="9"} 1\n',
        "".join(line for line in METRICS.splitlines(keepends=True) if "resolves" not in line),
        "".join(line for line in METRICS.splitlines(keepends=True) if "bucket" not in line),
        "".join(f"{line.rpartition(' ')[0]} NaN\n" for line in METRICS.strip().splitlines()),
        "".join(f"{line.rpartition(' ')[0]} +Inf\n" for line in METRICS.strip().splitlines()),
        METRICS + "# garbage\nwhoami_router_\n{}{}{ 1\nwhoami_router_resolves_total 1 2 3\n\x00\n",
        METRICS.replace("\n", "\r\n"),
    ],
    ids=["version only", "no resolves", "no histogram", "NaN", "infinite", "garbage", "CRLF"],
)
def test_missing_and_useless_values_break_nothing(page, canned, text):
    canned.text = text
    page.open(canned.status_url)
    page.look()
    page.look()
    assert page.tone in ("good", "warn")
    shown = page.run("return document.body.innerText")
    for word in ("NaN", "undefined", "Infinity", "null", "[object"):
        assert word not in shown
    outlines = page.run(
        "return [...document.querySelectorAll('.chart [d]')].map((e) => e.outerHTML).join()"
    )
    assert "NaN" not in outlines
    assert "undefined" not in outlines
    assert page.driver.get_log("browser") == []


class Odd:
    """Serves the page, and answers what a test wants where metrics should be."""

    def __init__(self, answer=None):
        self.answer = answer
        self.held = False
        self.in_flight = 0
        self.most = 0

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/":
            await Response(PAGE.read_bytes(), media_type="text/html")(scope, receive, send)
            return
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        while self.held:  # noqa: ASYNC110  (set by another thread, for which no Event is safe)
            await asyncio.sleep(0.01)
        await self.answer(scope, receive, send)
        self.in_flight -= 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Response(status_code=502), "It answered 502 instead of metrics."),
        (PlainTextResponse("<h1>Sign in</h1>"), "What answers is something else"),
        (PlainTextResponse("go_goroutines 3\n"), "What answers is something else"),
        (RedirectResponse("http://127.0.0.1:1/login"), "It cannot be reached from this browser."),
    ],
)
def test_answers_that_are_no_metrics_are_said(page, answer, why):
    with served(Odd(answer)) as address:
        page.open(f"http://{address}/")
        assert page.headline == "No answer from whoami-router."
        assert why in page.details


def test_slow_answer_is_waited_for_and_never_asked_for_twice_at_once(page):
    odd = Odd(PlainTextResponse(METRICS))
    with served(odd) as address:
        page.open(f"http://{address}/")
        odd.held = True
        page.run("wake()")
        page.wait_until(lambda: odd.in_flight == 1, "it is asked")
        page.wait_until(lambda: page.tone == "bad", "patience ends")
        assert "It did not answer within 5 s." in page.details
        assert page.text("requests") == "12,304"
        odd.held = False
        page.wait_until(lambda: page.tone == "warn", "it has answered")
    assert odd.most <= 2  # the one that was given up may still hang, at the server


def test_defect_in_drawing_does_not_end_the_looking(page, canned):
    canned.text = METRICS
    page.open(canned.status_url)
    page.run("window.showCharts = () => { throw new Error('a defect'); }")
    page.look()
    page.look()
    assert "a defect" in str(page.driver.get_log("browser"))
