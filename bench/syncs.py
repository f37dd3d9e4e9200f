"""What routing is for: a real Synapse with two sync workers, and its syncs routed in three ways.

300 users with three devices each are in 60 rooms, a few of them large (``bench/rooms.py``).
Somebody says something in one room after the other, and each device of everybody there syncs, the
devices of a user one after the other: this is what happens when long polls are answered. Each
device has its own ``since`` and loads members lazily, and sixteen sync at a time.

Synapse's caches have room for everybody and have been filled before: this is a server that has
been running for a while, of an administrator who knows ``global_factor``. What differs is how many
workers have to find out the same. Nobody reads what is said: there are no receipts, and nothing
else that is one user's alone changes.
"""

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import quote

import aiohttp
import click

from bench.counters import counting
from bench.measure import cpu_seconds
from bench.results import Results
from bench.rooms import SETTINGS, Population, User, populate, shuffled
from tests.stack.deployment import Deployment, deployed
from tests.stack.matrix import Device
from tests.stack.nginx import DEBUG_HEADERS, Nginx
from tests.stack.process import DidNotHappen
from tests.stack.router import Router

USERS, ROOMS = 300, 60

WORKERS = ("sync-1", "sync-2")

CLIENTS = 16
"""How many devices sync at a time."""

ROUNDS = 6
"""How often each device syncs before anything is measured.

By then 31 of 32 tokens have met both workers if these take turns. A token that has met one only
would cost round robin something that it does not cost in the long run.
"""

_NO_LOOKUP = ("snippets/route_by_user.conf", "auth_request /_whoami_router/resolve;", "")
_NO_HASH = ("conf.d/upstreams.conf", "hash $routing_key consistent;", "")

# Edits to the shipped files. If the router is not asked they route by token.
_ROUTINGS = {"by user": [], "by token": [_NO_LOOKUP], "round robin": [_NO_LOOKUP, _NO_HASH]}

_CLIENT = "/_matrix/client/v3"

# How many messages a user has not read in a room: asked for each sync that returns one.
_UNREAD = "get_unread_event_push_actions_by_room_for_user"


@dataclass(slots=True)
class Seen:
    """What clients saw: how many seconds it all took and each sync, whom a user's syncs reached."""

    seconds: float = 0.0
    durations: list[float] = field(default_factory=list)
    workers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def syncs(self) -> int:
        """How many there were."""
        return len(self.durations)

    def quantile(self, q: float) -> float:
        """Return within how many seconds this share of the syncs was answered."""
        return sorted(self.durations)[math.ceil(q * self.syncs) - 1]


class Clients:
    """All devices, each of which knows how far it has synced: from one routing to the next, too.

    ``url`` is that of an nginx; what users say goes to ``main``, Synapse's main process.
    """

    def __init__(self, population: Population, main: str) -> None:
        self._population = population
        self._main = main
        self._since: dict[Device, str] = {}
        self._messages = count()

    async def settle(self, url: str) -> Seen:
        """Have each device sync ``ROUNDS`` times, without anything being said."""
        chance = random.Random(0)
        return await self._sync_each(url, lambda _: self._everybody(chance))

    async def follow(
        self, url: str, seed: int, *, seconds: float = math.inf, syncs: float = math.inf
    ) -> Seen:
        """Have those sync who have news, for so many seconds or so many times.

        With the same seed, the same is said in the same rooms.
        """
        chance = random.Random(seed)
        return await self._sync_each(
            url, lambda http: self._woken(http, chance), seconds=seconds, syncs=syncs
        )

    async def _everybody(self, chance: random.Random) -> AsyncIterator[tuple[User, Device]]:
        for _ in range(ROUNDS):
            for user in shuffled(self._population.users, chance):
                for device in user.devices:
                    yield user, device

    async def _woken(
        self, http: aiohttp.ClientSession, chance: random.Random
    ) -> AsyncIterator[tuple[User, Device]]:
        while True:
            for room in shuffled(self._population.rooms, chance):
                await self._say_something(http, room.room_id, chance.choice(room.members))
                for user in shuffled(room.members, chance):
                    for device in user.devices:
                        yield user, device

    async def _sync_each(
        self,
        url: str,
        devices: Callable[[aiohttp.ClientSession], AsyncIterator[tuple[User, Device]]],
        *,
        seconds: float = math.inf,
        syncs: float = math.inf,
    ) -> Seen:
        seen = Seen()
        waiting: set[Device] = set()
        # Short: nothing is said before nearly everybody has heard what was said last.
        queue = asyncio.Queue[tuple[User, Device] | None](4 * CLIENTS)

        async def client() -> None:
            while (turn := await queue.get()) is not None:
                waiting.remove(turn[1])
                await self._sync(http, url, *turn, seen)

        start = time.monotonic()
        async with (
            asyncio.timeout(600),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)
            ) as http,
            asyncio.TaskGroup() as clients,
        ):
            for _ in range(CLIENTS):
                clients.create_task(client())
            queued = 0
            async for user, device in devices(http):
                if device in waiting:  # the sync that it waits for tells it this as well
                    continue
                waiting.add(device)
                await queue.put((user, device))
                queued += 1
                if queued >= syncs or time.monotonic() - start >= seconds:
                    break
            for _ in range(CLIENTS):
                await queue.put(None)
        seen.seconds = time.monotonic() - start
        return seen

    async def _sync(
        self, http: aiohttp.ClientSession, url: str, user: User, device: Device, seen: Seen
    ) -> None:
        since = self._since.get(device, self._population.since)
        params = {"since": since, "filter": user.filter_id, "timeout": "0"}
        start = time.monotonic()
        async with http.get(
            f"{url}{_CLIENT}/sync", params=params, headers=_authorization(device)
        ) as response:
            answer = await response.json()
        if not response.ok:
            raise DidNotHappen(f"a sync: {response.status} {answer}")
        seen.durations.append(time.monotonic() - start)
        seen.workers[device.user_id].add(response.headers["x-upstream-address"])
        self._since[device] = answer["next_batch"]

    async def _say_something(self, http: aiohttp.ClientSession, room_id: str, user: User) -> None:
        path = f"/rooms/{quote(room_id)}/send/m.room.message/{next(self._messages)}"
        async with http.put(
            f"{self._main}{_CLIENT}{path}",
            headers=_authorization(user.devices[0]),
            json={"msgtype": "m.text", "body": "Curiouser and curiouser!"},
        ) as response:
            if not response.ok:
                raise DidNotHappen(f"a message: {response.status} {await response.text()}")


def measure(results: Results, *, runs: int, seconds: float) -> None:
    """Measure the three routings ``runs`` times.

    The first of a run is measured for so many seconds, the others with as many syncs: all of a
    run have the same to do.
    """
    with deployed(settings=SETTINGS) as deployment, ExitStack() as stack:
        urls = _start(deployment, stack)
        main = deployment.main.addresses[0]
        # Those that have a port.
        helping = [deployment.workers[name].address for name in ("sync-1", "initial-2")]
        secret = deployment.registration_secret
        population = populate(main, helping, secret, users=USERS, rooms=ROOMS)
        clients = Clients(population, f"http://{main}")
        for run in range(runs):
            extent: dict[str, float] = {"seconds": seconds}
            first = run % len(urls)
            for name in (*list(urls)[first:], *list(urls)[:first]):
                seen, figures = _measure(deployment, clients, urls[name], run, extent)
                extent = {"syncs": seen.syncs}
                results.add("syncs", name, None, **figures)


def _start(deployment: Deployment, stack: ExitStack) -> dict[str, str]:
    """Start an nginx for each routing, and a router that logs little; return nginx's URLs."""
    directory = deployment.directory / "bench"
    directory.mkdir()
    main = next(address for address in deployment.main.addresses if address.startswith("unix:"))
    router = Router(directory, main, listen=f"unix:{directory}/router.sock")
    stack.enter_context(router)
    upstreams = {**deployment.upstreams, "whoami_router": (router.address,)}
    urls = {}
    for name, edits in _ROUTINGS.items():
        place = directory / name.replace(" ", "-")
        place.mkdir()
        # The debug headers say which worker it was.
        nginx = Nginx(place, upstreams, edits=[DEBUG_HEADERS, *edits])
        urls[name] = stack.enter_context(nginx).url
    return urls


def _measure(
    deployment: Deployment, clients: Clients, url: str, seed: int, extent: Mapping[str, float]
) -> tuple[Seen, dict[str, float]]:
    workers = [deployment.workers[name] for name in WORKERS]
    # Started anew, or a routing would find in the caches what the one before has left there.
    for worker in workers:
        worker.stop()
        worker.start()
    asyncio.run(clients.settle(url))

    pids = [worker.pid for worker in workers]
    with counting([worker.address for worker in workers]) as counted:
        cpu = cpu_seconds(pids)
        seen = asyncio.run(clients.follow(url, seed, **extent))
        cpu = cpu_seconds(pids) - cpu
    return seen, {
        "worker_cpu_ms": cpu / seen.syncs * 1e3,
        "queries_per_sync": counted.queries / seen.syncs,
        "cache_hit_ratio": counted.hit_ratio(),
        "unread_hit_ratio": counted.hit_ratio(_UNREAD),
        "p50_ms": seen.quantile(0.5) * 1e3,
        "p99_ms": seen.quantile(0.99) * 1e3,
        "syncs_per_s": seen.syncs / seen.seconds,
        "workers_per_user": sum(map(len, seen.workers.values())) / len(seen.workers),
    }


def _authorization(device: Device) -> dict[str, str]:
    return {"Authorization": f"Bearer {device.token}"}


@click.command
@click.option("--runs", default=3)
@click.option("--seconds", default=20.0)
def main(runs: int, seconds: float) -> None:
    """Measure, and print each figure's runs."""
    results = Results()
    measure(results, runs=runs, seconds=seconds)
    for series in results:
        values = "  ".join(f"{value:8.3f}" for value in series.values)
        click.echo(f"{series.case:12} {series.figure:18} {values}")


if __name__ == "__main__":
    main()
