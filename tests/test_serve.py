"""The service as a process: what is on which listener, how it starts and ends."""

import json
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import Process, accepts, free_port, wait_until
from tests.stack.router import Router
from tests.test_cli import one_line, resolve, run
from whoami_router import __version__

ADMIN = {"/health": 204, "/ready": 204, "/metrics": 200, "/": 200}


@pytest.fixture
def synapse_url():
    with served(FakeSynapse(owners={"a": "@alice:example.org"})) as address:
        yield f"http://{address}"


@pytest.fixture
def admin():
    return f"127.0.0.1:{free_port()}"


def by_path(path, target):
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=10) as client:
        return client.get(f"http://router{target}").status_code


def statuses(address):
    with httpx.Client(base_url=f"http://{address}") as client:
        return {path: client.get(path).status_code for path in ADMIN}


def test_all_is_in_one_place_unless_told_otherwise(tmp_path, synapse_url):
    with Router(tmp_path, synapse_url) as router:
        assert statuses(router.address) == ADMIN
        assert resolve(router, authorization="Bearer a").headers["x-user-identifier"] == "alice"


def test_with_a_listener_for_administrators_the_proxy_sees_nothing_but_answers(
    tmp_path, synapse_url, admin
):
    with Router(tmp_path, synapse_url, "--admin-listen", admin) as router:
        assert statuses(router.address) == dict.fromkeys(ADMIN, 404)
        assert statuses(admin) == ADMIN
        assert httpx.get(f"http://{admin}/resolve").status_code == 404
        assert resolve(router, authorization="Bearer a").headers["x-user-identifier"] == "alice"
        metrics = httpx.get(f"http://{admin}/metrics").text
        assert 'whoami_router_resolves_total{source="whoami"} 1.0' in metrics


def test_both_listeners_may_be_inherited(tmp_path, synapse_url):
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        options = ("--admin-listen", f"fd:{other.fileno()}")
        router = Router(tmp_path, synapse_url, *options, inherited=one)
        router._inherits = [one.fileno(), other.fileno()]
        with router:
            assert resolve(router, authorization="Bearer a").status_code == 204
            assert statuses("{}:{}".format(*other.getsockname())) == ADMIN
            assert "fd:" not in router.log_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_both_and_leaves_no_socket(tmp_path, synapse_url, number):
    path = tmp_path / "admin"
    options = ("--admin-listen", f"unix:{path}")
    with (
        Router(tmp_path, synapse_url, *options, listen=f"unix:{tmp_path}/sock") as router,
        socket.socket(socket.AF_UNIX) as idle,
    ):
        wait_until(lambda: accepts(f"unix:{path}"), "the administrators' listener")
        assert by_path(path, "/health") == 204  # or the signal would come before
        idle.connect(str(path))
        idle.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more
        router.send_signal(number)
        wait_until(lambda: not router.alive, "the end", seconds=10)
    assert router.returncode == 0
    assert not path.exists()
    assert not (tmp_path / "sock").exists()


def test_administrator_who_asked_is_answered_before_the_end(tmp_path):
    path = tmp_path / "admin"
    synapse = FakeSynapse()
    with (
        served(synapse) as address,
        Router(tmp_path, f"http://{address}", "--admin-listen", f"unix:{path}") as router,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until(lambda: accepts(f"unix:{path}"), "the administrators' listener")
        synapse.held = True
        ready = pool.submit(by_path, path, "/ready")
        wait_until(lambda: synapse.requests, "the check")
        router.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(f"unix:{path}"), "the listener is closed")
        synapse.held = False
        assert ready.result() == 204
        wait_until(lambda: not router.alive, "the end", seconds=10)
    assert router.returncode == 0


def test_lost_socket_of_the_administrators_ends_the_router_too(tmp_path, synapse_url):
    path = tmp_path / "admin"
    with Router(tmp_path, synapse_url, "--admin-listen", f"unix:{path}") as router:
        wait_until(lambda: accepts(f"unix:{path}"), "the administrators' listener")
        path.unlink()
        wait_until(lambda: not router.alive, "the end", seconds=10)
    assert router.returncode == 1
    last = router.log_text().splitlines()[-1]
    assert last.startswith("whoami-router: --admin-listen: the socket was removed")


def test_two_names_for_one_place_are_one_line():
    finished = run("serve", "--listen", "127.0.0.1:1", "--admin-listen", "127.0.0.1:1")
    assert "leave the option out" in one_line(finished)
    assert finished.returncode == 1


def test_taken_place_is_one_line_that_names_the_option():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        finished = run("serve", "--listen", "127.0.0.1:0", "--admin-listen", address)
    told = f"whoami-router: --admin-listen: cannot listen on {address}: "
    assert one_line(finished).startswith(told)
    assert finished.returncode == 1


def test_log_as_json_has_the_configuration_and_the_end(tmp_path, synapse_url, admin):
    options = ("--log-format", "json", "--admin-listen", admin, "--cache-size", "123")
    with Router(tmp_path, synapse_url, *options) as router:
        pass
    start, end = map(json.loads, router.log_text().splitlines())
    assert start["event"] == "listening"
    assert start["version"] == __version__
    assert start["listen"] == router.address
    assert start["admin_listen"] == admin
    assert start["synapse_url"] == synapse_url
    assert start["cache_size"] == 123
    assert (end["event"], end["signal"]) == ("stopped", "SIGTERM")


def test_status_page_may_load_nothing_and_be_framed_nowhere(tmp_path, synapse_url):
    with Router(tmp_path, synapse_url) as router:
        response = httpx.get(f"http://{router.address}/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        each.strip().split(" ", 1)
        for each in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    for directive in ("frame-ancestors", "base-uri", "form-action"):
        assert policy[directive] == "'none'"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    shipped = Path(__file__).parents[1] / "whoami_router/status.html"
    assert response.content == shipped.read_bytes()


def test_log_of_a_service_with_two_listeners_is_its_start_and_its_end(tmp_path, synapse_url):
    options = ("--log-format", "json", "--admin-listen", "127.0.0.1:0")
    with Router(tmp_path, synapse_url, *options) as router:
        resolve(router, authorization="Bearer a")
        wait_until(router.log_text, "the first line")
        bound = json.loads(router.log_text().splitlines()[0])["admin_listen"]
        assert statuses(bound) == ADMIN  # the port that it has, and not the 0 that was asked for
    start, end = map(json.loads, router.log_text().splitlines())
    assert not {"synapse_urls", "synapse_url"} <= start.keys()
    assert end["event"] == "stopped"


def test_lookup_in_flight_is_answered_though_administrators_are_dismissed_first(tmp_path):
    synapse = FakeSynapse(owners={"a": "@alice:example.org"})
    path = tmp_path / "admin"
    with (
        served(synapse) as address,
        Router(
            tmp_path,
            f"http://{address}",
            "--whoami-timeout",
            "20",
            "--admin-listen",
            f"unix:{path}",
        ) as router,
        ThreadPoolExecutor(1) as pool,
    ):
        resolve(router)
        synapse.held = True
        asked = pool.submit(resolve, router, authorization="Bearer a")
        wait_until(lambda: synapse.requests, "the lookup")
        router.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(router.address), "no listener")
        synapse.held = False
        assert asked.result().headers.get("x-user-identifier") == "alice"
        wait_until(lambda: not router.alive, "the end", seconds=10)
    assert len(router.log_text().splitlines()) == 2


@pytest.mark.parametrize("listener", ["--listen", "--admin-listen"])
def test_client_that_takes_no_answer_does_not_hold_up_the_end(tmp_path, synapse_url, listener):
    path, other = tmp_path / "one", tmp_path / "other"
    listen = {"--listen": (path, other), "--admin-listen": (other, path)}[listener]
    options = ("--admin-listen", f"unix:{listen[1]}")
    with (
        Router(tmp_path, synapse_url, *options, listen=f"unix:{listen[0]}") as router,
        socket.socket(socket.AF_UNIX) as greedy,
    ):
        wait_until(lambda: accepts(f"unix:{path}"), "the listener")
        target = "/metrics" if listener == "--admin-listen" else "/resolve"
        greedy.connect(str(path))
        greedy.settimeout(0)
        # As many as there is room for: what is not read fills everything on the way.
        question = f"GET {target} HTTP/1.1\r\nHost: router\r\n\r\n".encode()
        with suppress(BlockingIOError):
            while True:
                greedy.send(question)
        router.send_signal(signal.SIGTERM)
        wait_until(lambda: not router.alive, "the end", seconds=10)
    assert router.returncode == 0


def test_closed_standard_error_is_no_reason_to_end(tmp_path, synapse_url):
    path = tmp_path / "sock"
    command = f"exec {sys.executable} -m whoami_router serve --listen unix:{path} 2>&-"
    with Process(
        "whoami-router",
        ["sh", "-c", command],
        tmp_path / "log",
        ready=lambda: accepts(f"unix:{path}"),
        environment={"WHOAMI_ROUTER_SYNAPSE_URL": synapse_url},
    ):
        assert by_path(path, "/health") == 204
