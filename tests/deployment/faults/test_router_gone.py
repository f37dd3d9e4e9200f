"""A router that is gone, hangs or is started anew fails no request."""

import signal
import socket
import time
from itertools import cycle
from pathlib import Path

import pytest

from tests.soak import SOAK, times
from tests.stack.process import wait_until
from tests.stack.router import Router

# What nginx allows the router in snippets/whoami_router.conf, and a sync on a busy machine.
NGINX_WAITS = 3
A_SYNC = 1.5


def wait_until_resolved(load, *, seconds=10):
    """Returns once the router says again whose a request is."""
    now = time.monotonic()
    wait_until(
        lambda: load.results.between(now).sources - {None}, "requests are resolved", seconds=seconds
    )


def test_router_killed_again_and_again_fails_no_request(front, known, figures):
    running = front()
    running.learn(known)
    with running.load(cycle(known)) as load:
        for _ in range(times(20)):
            running.router.kill()
            running.router.start()
            wait_until_resolved(load)
            sent = load.results.total
            wait_until(lambda sent=sent: load.results.total > sent + 30, "it is asked")
    figures.record("router killed and restarted, 20 times", load.results)
    assert load.results.failed == []
    assert None in load.results.sources, "no request met a dead router"


def test_stopped_router_costs_each_request_what_nginx_allows_it(front, known, figures):
    running = front()
    running.learn(known)
    with running.load(cycle(known)) as load:
        wait_until_resolved(load)
        stopped = time.monotonic()
        running.router.send_signal(signal.SIGSTOP)
        wait_until(lambda: time.monotonic() > stopped + 10 * SOAK, "ten seconds", seconds=20 * SOAK)
        running.router.send_signal(signal.SIGCONT)
        continued = time.monotonic()
        wait_until_resolved(load)
    figures.record("router stopped for 10 s", load.results.between(stopped, continued))
    assert load.results.failed == []
    assert load.results.slowest < NGINX_WAITS + A_SYNC
    assert load.results.slowest >= NGINX_WAITS, "no request met the stopped router"


def test_router_whose_socket_is_deleted_ends_and_is_started_anew(front, known, figures):
    running = front()
    router = running.router
    running.learn(known)
    with running.load(cycle(known)) as load:
        wait_until_resolved(load)
        log = router.log_text()
        deleted = time.monotonic()
        Path(router.address.removeprefix("unix:")).unlink()
        wait_until(lambda: not router.alive, "the router notices", seconds=10)
        noticed = time.monotonic() - deleted
        # nginx's connections end with the router: until then it is asked over them.
        wait_until(lambda: None in load.results.between(deleted).sources, "the router is missed")
        assert router.returncode > 0
        said = router.log_text().removeprefix(log).splitlines()
        router.start()
        wait_until_resolved(load)
    figures.record("router's socket deleted", load.results, f"noticed after {noticed:.1f} s")
    assert load.results.failed == []
    assert len(said) == 1
    assert "socket" in said[0]


@pytest.mark.parametrize(
    ("fault", "inherits"),
    [
        ("router restarted, making its socket", False),
        ("router restarted, inheriting its socket", True),
    ],
)
def test_router_that_is_restarted_fails_no_request(front, known, figures, fault, inherits):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)

        def inheriting(directory, url, *options):
            return Router(directory, url, *options, inherited=listener)

        running = front(router=inheriting if inherits else None)
        running.learn(known)
        with running.load(cycle(known)) as load:
            for _ in range(times(5)):
                running.router.stop()
                assert running.router.returncode == 0
                running.router.start()
                wait_until_resolved(load)
    figures.record(fault, load.results)
    assert load.results.failed == []
    assert load.results.slowest < A_SYNC
