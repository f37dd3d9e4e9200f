"""What ``whoami-router check`` finds of each URL of Synapse."""

import time

import pytest
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from tests.check.command import check, found, one_wrong


def synapse_says(*urls, timeout="2"):
    given = [word for url in urls for word in ("--synapse-url", url)]
    return check("--only", "synapse", "--whoami-timeout", timeout, *given)


def test_each_url_is_looked_at_by_itself(synapse_url, closed):
    finished = synapse_says(synapse_url, f"http://{closed}")
    assert closed in one_wrong(finished)
    assert synapse_url in found(finished, "ok")[0]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (HTMLResponse("<html>It works", 200), "another HTTP server"),
        (HTMLResponse("not found", 404), "another HTTP server"),
        (HTMLResponse("who are you", 401), "another HTTP server"),
        (JSONResponse({"errcode": "M_UNRECOGNIZED"}, 404), "generic worker"),
        (JSONResponse({"errcode": "M_FORBIDDEN"}, 403), "M_FORBIDDEN"),
        (JSONResponse({"user_id": "@alice:h"}), "another HTTP server"),
        (JSONResponse(["M_MISSING_TOKEN"], 401), "another HTTP server"),
        (Response("[" * 60_000, 401), "another HTTP server"),
        (RedirectResponse("https://example.org"), "another HTTP server"),
        (Response("", 502), "proxy"),
        (Response("", 429), "limits rates"),
    ],
)
def test_server_that_is_no_synapse_is_said_to_be_none(synapse, synapse_url, answer, word):
    synapse.answer = answer
    assert word in one_wrong(synapse_says(synapse_url))


def test_proxy_before_synapse_is_noted(synapse, synapse_url):
    synapse.answer = JSONResponse(
        {"errcode": "M_MISSING_TOKEN"}, 401, headers={"server": "nginx/1.22.1"}
    )
    finished = synapse_says(synapse_url)
    assert finished.returncode == 0
    assert "nginx/1.22.1" in found(finished, "note")[0]


def test_synapse_that_hangs_is_waited_for_as_long_as_the_router_does(synapse, synapse_url):
    synapse.held = True
    start = time.monotonic()
    line = one_wrong(synapse_says(synapse_url, timeout="0.5"))
    assert "within 0.5 s" in line
    assert time.monotonic() - start < 10
    finished = synapse_says(synapse_url, synapse_url, timeout="0.5")
    assert all("within 0.25 s, its share" in line for line in found(finished))


def test_sockets_of_synapse_that_cannot_be_used_have_their_remedy(tmp_path):
    (tmp_path / "file").touch()
    assert "no such socket" in one_wrong(synapse_says(f"unix:{tmp_path}/missing"))
    assert "no socket" in one_wrong(synapse_says(f"unix:{tmp_path}/file"))
