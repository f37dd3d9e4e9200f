"""A deployment in which all happens that there is to see, watched by mtail and Prometheus."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from starlette.responses import Response

from tests.fake_synapse import FakeSynapse, served
from tests.monitoring.programs import Mtail, Prometheus, logged_to
from tests.stack.nginx import Nginx
from tests.stack.process import free_port, wait_until
from tests.stack.router import Router

SYNC = "/_matrix/client/v3/sync?since=s1"
INITIAL_SYNC = "/_matrix/client/v3/sync"
VERSIONS = "/_matrix/client/versions"
TOKENS = [f"token-{number}" for number in range(40)]


@dataclass
class Watched:
    """What runs, and what watches it.

    ``well`` is a router with a dead URL and one of Synapse, asked about more tokens than it
    remembers; ``lone`` is one without any Synapse. nginx asks ``killed``, which is killed. Its main
    process only fails, and its worker for initial syncs is dead.
    """

    well: Router
    lone: Router
    killed: Router
    nginx: Nginx
    log: Path
    mtail: Mtail
    prometheus: Prometheus


@pytest.fixture(scope="package")
def watched():
    with ExitStack() as stack:
        # Where the user that nginx's workers run as can get to.
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="wr-watched-")))
        directory.chmod(0o777)

        def place(name):
            (directory / name).mkdir()
            return directory / name

        synapse = FakeSynapse(
            owners={token: f"@{token}:example.org" for token in TOKENS},
            breaking={f"breaking-{number}" for number in range(10_000)},
        )
        failing = FakeSynapse(answer=Response(status_code=500))
        synapse_address = stack.enter_context(served(synapse))
        failing_address = stack.enter_context(served(failing))
        dead = f"127.0.0.1:{free_port()}"

        def router(name, *urls, options=()):
            more = [word for url in urls[1:] for word in ("--synapse-url", f"http://{url}")]
            started = Router(place(name), f"http://{urls[0]}", *more, *options)
            return stack.enter_context(started)

        small = ("--max-lookups", "1", "--cache-size", "10", "--rejected-size", "10")
        well = router("well", dead, synapse_address, options=small)
        lone = router("lone", dead)
        killed = router("killed", synapse_address)
        log = directory / "access.log"
        nginx = Nginx(
            place("site"),
            {
                "whoami_router": [killed.address],
                "synapse_main": [failing_address],
                "synapse_sync": [synapse_address],
                "synapse_initial_sync": [dead],
            },
            edits=[logged_to(log, "routing_json")],
        )
        stack.enter_context(nginx)
        mtail = stack.enter_context(Mtail(directory, log))
        targets = {
            "whoami-router": [well.address, lone.address, killed.address],
            "whoami-router-mtail": [mtail.address, dead],
        }
        prometheus = stack.enter_context(Prometheus(place("prometheus"), targets))
        watched = Watched(well, lone, killed, nginx, log, mtail, prometheus)
        with Load(watched):
            for source in ("cache", "unavailable"):
                counted = f'nginx_routed_requests_total{{source="{source}"}} > 0'
                wait_until(lambda counted=counted: prometheus.values(counted), counted)
                killed.kill()  # once it has answered
            with log.open("a") as other:
                other.write("a line of another format\n")
            yield watched


@dataclass
class Load:
    """Requests of all kinds, a few at a time, as long as it is entered."""

    watched: Watched
    _ended: threading.Event = field(default_factory=threading.Event)
    _round: Iterator[int] = field(default_factory=count)

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _run(self):
        with httpx.Client(timeout=30) as client, ThreadPoolExecutor(8) as clients:
            while not self._ended.wait(0.05):  # some 200 requests a second, and not more
                for response in clients.map(lambda ask: client.request(**ask), self._requests()):
                    assert response.status_code in (200, 204, 500, 503)

    def _requests(self):
        number = next(self._round)
        tokens = [TOKENS[(number * 5 + other) % len(TOKENS)] for other in range(5)]
        for router in (self.watched.well, self.watched.lone):
            url = f"http://{router.address}/resolve"
            breaking = [f"breaking-{(number * 4 + other) % 10_000}" for other in range(4)]
            for token in (*tokens, *breaking, f"rejected-{number}"):
                headers = {"authorization": f"Bearer {token}"}
                yield {"method": "GET", "url": url, "headers": headers}
        for path in (SYNC, SYNC, INITIAL_SYNC, VERSIONS):
            url = f"{self.watched.nginx.url}{path}"
            headers = {"authorization": f"Bearer {tokens[0]}"}
            yield {"method": "GET", "url": url, "headers": headers}
        # A browser's question, about which whoami-router is not asked.
        yield {"method": "OPTIONS", "url": f"{self.watched.nginx.url}{SYNC}"}
