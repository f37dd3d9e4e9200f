"""What a real mtail counts of what a real nginx logs."""

import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from starlette.responses import Response

from tests.fake_synapse import FakeSynapse, served
from tests.monitoring.programs import Mtail, logged_to, open_files
from tests.stack.nginx import Nginx
from tests.stack.process import free_port, wait_until
from tests.stack.router import Router

SYNC = "/_matrix/client/v3/sync?since=s1"
INITIAL_SYNC = "/_matrix/client/v3/sync"
VERSIONS = "/_matrix/client/versions"

TOKENS = ("counted", "back")

REQUESTS = "nginx_routed_requests_total"
ERRORS = "nginx_routed_errors_total"


@dataclass
class Site:
    nginx: Nginx
    router: Router
    log: Path
    mtail: Mtail
    before: dict = field(default_factory=dict)
    """What was counted before this test, by name and labels."""

    def ask(self, path, times=1, token="nobodys"):
        for _ in range(times):
            headers = {"authorization": f"Bearer {token}"}
            httpx.get(f"{self.nginx.url}{path}", headers=headers, timeout=30)

    def counted(self, name, **labels):
        series = self.mtail.series()
        return sum(
            value - self.before.get(key, 0)
            for key, value in series.items()
            if key[0] == name and labels.items() <= dict(key[1]).items()
        )

    def counts(self, number, name=REQUESTS, **labels):
        """Wait until so many more are counted than before; fail if there are more."""
        wait_until(lambda: self.counted(name, **labels) >= number, f"{number} {name} {labels}")
        assert self.counted(name, **labels) == number


@pytest.fixture(scope="module", params=["routing", "routing_json"])
def running(request):
    """An nginx with a worker for syncs, none for initial syncs, and a main process that fails."""
    with ExitStack() as stack:
        # Where the user that nginx's workers run as can get to.
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="wr-mtail-")))
        directory.chmod(0o777)
        synapse = FakeSynapse(owners=dict.fromkeys(TOKENS, "@alice:example.org"))
        address = stack.enter_context(served(synapse))
        failing = stack.enter_context(served(FakeSynapse(answer=Response(status_code=500))))
        router = stack.enter_context(Router(directory, f"http://{address}"))
        log = directory / "access.log"
        upstreams = {
            "whoami_router": [router.address],
            "synapse_main": [failing],
            "synapse_sync": [address],
            "synapse_initial_sync": [f"127.0.0.1:{free_port()}"],
        }
        edits = [logged_to(log, request.param)]
        nginx = stack.enter_context(Nginx(directory, upstreams, edits=edits))
        mtail = stack.enter_context(Mtail(directory, log))
        yield Site(nginx, router, log, mtail)


@pytest.fixture
def site(running):
    """The same, and what it has counted so far does not count."""
    running.before = running.mtail.series()
    return running


def test_requests_are_counted_by_pool_and_source(site):
    site.ask(SYNC, 3, token="counted")
    site.ask(SYNC, 2)
    site.ask(VERSIONS, 4)
    site.counts(9)
    assert site.counted(REQUESTS, pool="synapse_sync", source="whoami") == 1
    assert site.counted(REQUESTS, pool="synapse_sync", source="cache") == 2
    assert site.counted(REQUESTS, pool="synapse_sync", source="rejected") == 2
    assert site.counted(REQUESTS, pool="synapse_main", source="not_asked") == 4
    assert site.counted("nginx_unread_lines_total") == 0


def test_a_router_that_is_killed_is_seen(site):
    site.ask(SYNC)
    site.counts(1)
    site.router.kill()
    site.ask(SYNC, 3)
    site.counts(3, pool="synapse_sync", source="unavailable")
    site.router.start()
    site.ask(SYNC, 1, token="back")
    site.counts(1, source="whoami")
    site.counts(3, source="unavailable")


def test_what_may_go_wrong_is_zero_before_it_does(site):
    """Or Prometheus, which compares with the value before, would miss it."""
    site.ask(VERSIONS)
    site.counts(1)
    series = {(name, *sorted(dict(labels).values())) for name, labels in site.mtail.series()}
    assert (REQUESTS, "synapse_main", "unavailable") in series
    assert (ERRORS, "nginx", "synapse_main") in series


def test_an_error_is_synapses_or_nginxs(site):
    site.ask(SYNC)
    site.ask(VERSIONS, 2)
    site.ask(INITIAL_SYNC, 3)
    site.counts(6)
    assert site.counted(ERRORS, pool="synapse_initial_sync", answered_by="nginx") == 3
    assert site.counted(ERRORS, pool="synapse_main", answered_by="upstream") == 2
    assert site.counted(ERRORS) == 5


@pytest.mark.parametrize(
    ("request_line", "header"),
    [("GET / HTTP/9.9", "A: b"), ("POST / HTTP/1.1", "Transfer-Encoding: x")],
)
def test_an_error_of_the_client_is_nobodys(site, request_line, header):
    """nginx says 505 and 501 to these: with it a stranger could raise an alarm."""
    host, _, port = site.nginx.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(f"{request_line}\r\nHost: x\r\n{header}\r\n\r\n".encode())
        assert client.recv(100).split()[1] in (b"501", b"505")
    site.counts(1)
    assert site.counted(ERRORS) == 0


def is_written_to(file, nginx):
    """Return whether one of nginx's processes has the file open."""
    children = Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children").read_text().split()
    return any(file in open_files(int(pid)) for pid in (nginx.pid, *children))


def test_no_line_is_lost_or_counted_twice_when_the_log_is_rotated(site):
    """As logrotate does it: the new file is there at once. (Else mtail gives the old one up.)"""
    old = site.log.with_suffix(".1")
    site.ask(SYNC, 5)
    site.log.rename(old)
    site.log.touch()
    site.nginx.send_signal(signal.SIGUSR1)
    wait_until(lambda: not is_written_to(old, site.nginx), "nginx has opened the new log")
    site.ask(SYNC, 5)
    site.counts(10)


def test_no_line_is_lost_or_counted_twice_when_the_log_is_emptied(site):
    site.ask(SYNC, 5)
    site.counts(5)
    with site.log.open("r+") as log:
        log.truncate()
    site.ask(SYNC, 5)
    site.counts(10)


def test_a_line_in_another_format_or_with_another_source_is_counted_apart(site):
    with site.log.open("a") as log:
        log.write('127.0.0.1 - - [21/Nov/2026:17:00:00 +0000] "GET / HTTP/1.1" 200 5\n')
        log.write('{"status":"200","source":"evil","group":"x","pool":"x","header_time":"0.1"}\n')
    site.counts(2, "nginx_unread_lines_total")
    assert site.counted(REQUESTS) == 0


def test_no_client_makes_a_label(site):
    for target in ("/_matrix/pool=evil&source=evil", '/_matrix/"pool":"evil","source":"evil",'):
        site.ask(target, token="evil")
    site.counts(2)
    values = {value for _, labels in site.mtail.series() for _, value in labels}
    assert not [value for value in values if "evil" in value or "alice" in value]


def test_a_restarted_mtail_counts_from_there(site):
    site.ask(SYNC, 5)
    site.counts(5)
    site.mtail.stop()
    site.mtail.start()
    site.before = {}
    site.ask(SYNC, 3)
    site.counts(3)
