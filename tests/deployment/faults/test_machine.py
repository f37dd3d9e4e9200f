"""What a machine can do to the router: no file descriptors, a clock that jumps."""

import os
import resource
import socket
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path

import pytest

from tests.soak import SOAK, times
from tests.stack.matrix import Matrix
from tests.stack.process import wait_until
from tests.stack.router import Router

# Without it nginx asks over the connections it has, which need no new descriptor.
EACH_ITS_CONNECTION = (
    "conf.d/upstreams.conf",
    "    keepalive 32;\n    keepalive_timeout 60s;",
    "",
)

CACHE_TTL = 2


def test_router_without_file_descriptors_fails_no_request(front, known, figures):
    running = front(edits=[EACH_ITS_CONNECTION])
    router = running.router
    path = router.address.removeprefix("unix:")
    running.learn(known)
    with running.load(cycle(known)) as load, ExitStack() as clients:
        wait_until(lambda: load.results.sources, "requests are resolved")
        soft, hard = resource.prlimit(router.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (open_files(router), hard))
        for _ in range(20):
            # Whoever does not go away takes what descriptors there are.
            clients.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        lowered = time.monotonic()
        wait_until(
            lambda: len(load.results.between(lowered).where(lambda r: r.source is None)) > 100,
            "requests meet a router without descriptors",
        )
        wait_until(lambda: time.monotonic() > lowered + 3 * SOAK, "it goes on")
        resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (soft, hard))
        raised = time.monotonic()
        wait_until(lambda: "cache" in load.results.between(raised).sources, "it recovers")
        recovered = time.monotonic()
        wait_until(lambda: len(load.results.between(recovered)) > 100, "it stays so")
    figures.record("no file descriptor left for the router", load.results)
    assert load.results.failed == []
    assert load.results.between(recovered).sources == {"cache"}
    assert router.alive


def open_files(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208  (a count, no paths)


class RouterInItsTime(Router):
    """A router whose wall clock is as far from the real one as ``shift``, a file, says."""

    def __init__(self, library, shift, directory, *arguments, **keywords):
        super().__init__(directory, *arguments, **keywords)
        self._environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(shift),
            "FAKETIME_NO_CACHE": "1",
            # As on a real machine, where CLOCK_MONOTONIC goes its way. Two names: of today's
            # version and of older ones.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def faketime():
    found = [
        path
        for root in ("/usr/lib", "/usr/local/lib")
        for path in Path(root).glob("**/faketime/libfaketime.so.1")
    ]
    assert found, "libfaketime is not installed"
    return found[0]


def test_clock_that_jumps_changes_nothing(
    front, known, new_devices, figures, deployment, tmp_path, faketime
):
    shift = tmp_path / "shift"
    shift.write_text("+0")

    def shifted(directory, url, *options):
        listen = f"unix:{directory}/router.sock"
        return RouterInItsTime(faketime, shift, directory, url, *options, listen=listen)

    options = ("--cache-ttl", str(CACHE_TTL), "--log-level", "debug")
    running = front(*options, router=shifted)
    running.learn(known)
    (device,) = new_devices(1, users=1)
    with running.load(cycle(known)) as load, Matrix(running.nginx.url) as client:
        assert deployment.route(client.sync(device)).source == "whoami"
        for text, days in [("-1d", -1), ("+1d", 1), ("+0", 0)] * times(1):
            asked = time.monotonic()
            shift.write_text(text)
            today = f"\n{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}T"
            end = len(running.router.log_text())
            wait_until(
                lambda today=today, end=end: today in running.router.log_text()[end - 1 :],
                "the router has another date",
            )
            # By the wall clock it would have expired when the clock went forward,
            assert deployment.route(client.sync(device)).source == "cache"
            wait_until(
                lambda asked=asked: time.monotonic() > asked + CACHE_TTL, "the answer has expired"
            )
            # and not for a day when it went back.
            assert deployment.route(client.sync(device)).source == "whoami"
    figures.record("clock a day back, a day forward", load.results)
    assert load.results.failed == []
    assert load.results.sources <= {"cache", "whoami"}
