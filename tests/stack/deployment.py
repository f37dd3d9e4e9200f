"""All of it together: what runs when whoami-router is in use."""

import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from tests.stack.nginx import ACCESS_LOG, DEBUG_HEADERS, POOLS, SINGLE_SIGN_ON, Nginx
from tests.stack.postgres import Postgres
from tests.stack.process import Process, free_port, wait_until
from tests.stack.redis import Redis
from tests.stack.router import Router
from tests.stack.synapse import (
    Bridge,
    ForkedWorkers,
    Main,
    SharedConfiguration,
    Worker,
    every_stream_has_a_writer,
)

# The main process's UNIX socket is for routers, and nobody else asks there.
_LOOKUP = re.compile(r' synapse\.access\.http\.unix - .* "GET (\S+/account/whoami\S*) HTTP')

# The pools that every deployment has.
_OTHERWISE = ("main", "sync", "initial_sync")


@dataclass(frozen=True, slots=True)
class Route:
    """Which way a request went, as the debug headers of its response say."""

    identifier: str | None
    source: str | None
    worker: str
    pool: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything that runs, all of it on loopback and in one directory."""

    directory: Path
    registration_secret: str
    bridge: Bridge
    postgres: Postgres
    main: Main
    workers: Mapping[str, Worker]
    router: Router
    nginx: Nginx
    upstreams: Mapping[str, tuple[str, ...]]
    every_class: ForkedWorkers | None

    def route(self, response: httpx.Response) -> Route:
        """Return which way a sync went."""
        address = response.headers["x-upstream-address"]
        return Route(
            response.headers.get("x-user-identifier"),
            response.headers.get("x-user-identifier-source"),
            next(name for name, worker in self.workers.items() if worker.address == address),
            next(name for name, servers in self.upstreams.items() if address in servers),
        )

    def lookups(self) -> list[str]:
        """Return the URI of every lookup of the router's that Synapse has answered."""
        # Synapse logs a request after it has answered it, and requests in their order.
        last = f"/{secrets.token_hex()}"
        httpx.get(f"http://{self.main.addresses[0]}{last}", trust_env=False)
        wait_until(lambda: last in self.main.log_text(), "Synapse's log is written")
        return _LOOKUP.findall(self.main.log_text())


@contextmanager
def deployed(
    progress: Callable[[str], object] = lambda _: None,
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    every_class: bool = False,
) -> Iterator[Deployment]:
    """Start everything; afterwards stop everything, also after an error.

    ``progress`` is told what is being started. ``settings`` are Synapse's, besides those that
    every deployment here has. With ``every_class`` each pool of the shipped upstreams.conf has a
    worker, and single sign-on is on.

    Raises DidNotHappen, with the end of the log of the program that did not start.
    """
    with ExitStack() as stack:
        # In /tmp whatever TMPDIR says: the path of a UNIX socket must not be longer than 107
        # bytes. PostgreSQL and nginx's workers run as other users and have to get through.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wr-", dir="/tmp")))
        directory.chmod(0o755)

        def start(*processes: Process) -> None:
            for process in processes:
                stack.callback(process.stop)
                process.spawn()
            for process in processes:
                process.wait_ready()

        def tcp() -> str:
            return f"127.0.0.1:{free_port()}"

        def unix(name: str) -> str:
            return f"unix:{directory}/{name}.sock"

        progress("PostgreSQL and Redis")
        postgres, redis = Postgres(directory), Redis(directory)
        start(postgres, redis)

        progress("Synapse's main process, which makes its tables first")
        bridge = Bridge(directory)
        if every_class:
            settings = {**settings, **every_stream_has_a_writer(directory)}
        shared = SharedConfiguration(directory, postgres, redis, bridge, settings)
        main = Main(shared, [tcp(), unix("main")])
        start(main)

        progress("Synapse's workers, two for syncs and two for initial syncs")
        addresses = {
            "sync-1": tcp(),
            "sync-2": unix("sync-2"),
            "initial-1": unix("initial-1"),
            "initial-2": tcp(),
        }
        workers = {name: Worker(shared, name, address) for name, address in addresses.items()}
        classes = ForkedWorkers(
            shared, {name: unix(name) for name in POOLS if name not in _OTHERWISE}
        )
        start(*workers.values(), *[classes] * every_class)

        progress("whoami-router and nginx")
        router = Router(
            directory, unix("main"), "--log-level", "debug", listen=f"unix:{directory}/router.sock"
        )
        upstreams = {
            "whoami_router": (router.address,),
            "synapse_main": (main.addresses[0],),
            "synapse_sync": (addresses["sync-1"], addresses["sync-2"]),
            "synapse_initial_sync": (addresses["initial-1"], addresses["initial-2"]),
        }
        if every_class:
            upstreams |= {f"synapse_{n}": (address,) for n, address in classes.addresses.items()}
        edits = [DEBUG_HEADERS, ACCESS_LOG, *[SINGLE_SIGN_ON] * every_class]
        nginx = Nginx(directory, upstreams, edits=edits)
        start(router, nginx)

        yield Deployment(
            directory,
            shared.registration_secret,
            bridge,
            postgres,
            main,
            workers,
            router,
            nginx,
            upstreams,
            classes if every_class else None,
        )
