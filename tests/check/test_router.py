"""What ``whoami-router check`` finds of a router, and what it costs to be its health check."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from tests.check.command import SECRET, check, found, one_wrong
from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import free_port
from tests.stack.router import Router
from tests.test_tokens import NATIVE

HEAVY = ("aiohttp", "httpx", "starlette", "uvicorn", "crossplane", "asyncio", "http.client")


def router_says(*arguments, **environment):
    return check("--only", "router", *arguments, **environment)


def test_router_is_healthy_whatever_is_with_synapse(tmp_path, closed):
    """It is a container's health check: a restart would make the router forget whom it knows."""
    with Router(tmp_path, f"http://{closed}") as router:
        finished = router_says("--listen", router.address)
        assert finished.returncode == 0, finished.stdout
        line = one_wrong(with_a_synapse(router))
    assert "/ready answers 503: Synapse cannot be asked" in line


def with_a_synapse(router):
    """Return what is said when Synapse answers us, and not the router."""
    with served(FakeSynapse()) as address:
        return check(
            *("--only", "router", "--only", "synapse"),
            *("--listen", router.address, "--synapse-url", f"http://{address}"),
        )


@pytest.mark.parametrize("kind", ["tcp", "unix", "every address"])
def test_router_is_found_wherever_it_listens(tmp_path, synapse_url, kind):
    port = free_port()
    listen, connects = {
        "tcp": (f"127.0.0.1:{port}", f"127.0.0.1:{port}"),
        "unix": (f"unix:{tmp_path}/sock", f"unix:{tmp_path}/sock"),
        "every address": (f"0.0.0.0:{port}", f"127.0.0.1:{port}"),
    }[kind]
    with Router(tmp_path, synapse_url, listen=listen):
        finished = router_says("--listen", listen)
    assert finished.returncode == 0, finished.stdout
    assert connects in finished.stdout


def test_admin_listener_is_asked_for_health(tmp_path, synapse_url):
    admin = f"unix:{tmp_path}/admin"
    with Router(tmp_path, synapse_url, "--admin-listen", admin) as router:
        both = ("--listen", router.address, "--admin-listen", admin)
        finished = router_says(*both)
        assert finished.returncode == 0, finished.stdout
        assert f"{admin}: it lives" in finished.stdout
        assert "give --admin-listen" in one_wrong(router_says("--listen", router.address))
        assert "the place of --admin-listen" in one_wrong(router_says("--listen", admin))
        unknown = router_says("--listen", "fd:3", "--admin-listen", admin)
        assert unknown.returncode == 0
        assert "only the service itself knows" in found(unknown, "note")[0]


@pytest.mark.parametrize("listen", ["fd:3", "127.0.0.1:0"])
def test_address_that_only_the_service_knows_is_said_to_be_needed(listen):
    line = one_wrong(router_says("--listen", listen))
    assert "--listen 127.0.0.1:9009" in line


def test_nobody_there_is_said(tmp_path, closed):
    assert "nobody listens" in one_wrong(router_says("--listen", closed))
    assert "no such socket" in one_wrong(router_says("--listen", f"unix:{tmp_path}/missing"))


@pytest.mark.parametrize(
    "answer", [HTMLResponse("<html>", 404), Response(status_code=204), JSONResponse({})]
)
def test_other_server_is_said_to_be_one(synapse, synapse_url, answer):
    synapse.answer = answer
    line = one_wrong(router_says("--listen", synapse_url.removeprefix("http://")))
    assert "another HTTP server" in line or "the place of --admin-listen" in line


def test_router_that_hangs_is_given_up_when_nginx_would():
    with socket.create_server(("127.0.0.1", 0)) as hung:
        start = time.monotonic()
        line = one_wrong(router_says("--listen", f"127.0.0.1:{hung.getsockname()[1]}"))
    assert "within 3 s" in line
    assert time.monotonic() - start < 10


def test_router_names_the_user_of_the_token(router, synapse_url, token_file):
    path = token_file(SECRET)
    given = ("--listen", router.address, "--synapse-url", synapse_url, "--token-file", path)
    assert "alice's there, too (source whoami)" in check(*given).stdout
    assert "alice's there, too (source cache)" in check(*given).stdout


@contextmanager
def another_synapse(owner):
    other = FakeSynapse(owners={SECRET: owner} if owner else {})
    with served(other) as address:
        yield f"http://{address}"


@pytest.mark.parametrize(
    ("owner", "words"),
    [("@bob:example.org", "names bob, and Synapse alice"), (None, "rejects the token")],
)
def test_router_of_another_synapse_is_found_by_the_token(
    tmp_path, synapse_url, token_file, owner, words
):
    with another_synapse(owner) as other, Router(tmp_path, other) as router:
        line = one_wrong(
            check(
                *("--listen", router.address, "--synapse-url", synapse_url),
                *("--token-file", token_file(SECRET)),
            )
        )
    assert words in line


def test_fallback_for_the_token_is_found(tmp_path, closed, token_file):
    with Router(tmp_path, f"http://{closed}") as router:
        line = one_wrong(
            router_says("--listen", router.address, "--token-file", token_file(SECRET))
        )
    assert "source fingerprint" in line


def test_router_that_is_told_to_go_by_the_token_is_not_wrong(tmp_path, token_file):
    synapse = FakeSynapse(owners={NATIVE.decode(): "@alice:example.org"})
    with (
        served(synapse) as address,
        Router(tmp_path, f"http://{address}", "--native-tokens", "decode") as router,
    ):
        asked = check(
            *("--listen", router.address, "--synapse-url", f"http://{address}"),
            *("--token-file", token_file(NATIVE.decode())),
        )
    assert asked.returncode == 0
    assert "--native-tokens=decode" in asked.stdout


def test_name_that_no_host_can_have_is_found():
    assert "no host of this name" in one_wrong(router_says("--listen", "a..b:9009"))


def test_health_check_loads_nothing_that_is_slow_to_load(router):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
        f"sys.argv = ['x', 'check', '--only', 'router', '--listen', {router.address!r}]\n"
        "from whoami_router.cli import main\n"
        "main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines()[-1] == "[]"
