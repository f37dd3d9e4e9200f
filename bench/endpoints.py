"""Which endpoints besides sync gain if all requests of one user reach the same worker.

A real Synapse with two equal workers, which are asked directly: this client is the routing. 60
users with three devices each are in 15 rooms. Users take turns, ten at a time. First something
changes that their requests are about (``bench/town.py``); the main process is told, not the
workers. Then each of their devices sends the requests of a group, in random order, eight at once.

Each routing has the same requests in the same order, and workers that were just started. The first
round is what workers do not know yet ("cold"), a few more let every token meet every worker that
it will meet, and the last ones are measured. Only counts are, of both workers together: times
would say how busy the machine was.

Both workers write receipts and device lists. Of to-device messages, account data, presence and
push rules Synapse allows one writer only, which leaves no choice of a worker for what writes these,
nor for ``sendToDevice`` and somebody else's presence, to which others answer 500. Measured is what
any worker answers.

The limits: caches have room for everybody, and only the cold figure says something about those
that have not. How much a group gains depends on how often something changes: here it is once for
each user, or once in a room, between two visits of a user's devices. No room is encrypted, nobody
is from elsewhere, and the three devices of a user are equally busy.
"""

import asyncio
import hashlib
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from bench import rooms
from bench.counters import counting
from bench.results import Results
from bench.rooms import Room, User, populate, shuffled
from bench.town import GROUPS, Group, Request, Town, Visit
from tests.stack.postgres import Postgres
from tests.stack.process import DidNotHappen, free_port
from tests.stack.redis import Redis
from tests.stack.synapse import Bridge, Main, SharedConfiguration, Worker, replication_socket

USERS, ROOMS = 60, 15

AT_A_TIME = 10
"""How many users' devices send requests between two changes."""

CLIENTS = 8
"""How many requests are sent at once."""

COLD, WARM, MEASURED = 1, 2, 3
"""How many rounds there are of each kind; in each, every device sends every request once.

Of whoami, all groups have twice as many warm ones as of their own: a token that has met one worker
only would cost round robin something that it does not cost in the long run.
"""

WORKERS = ("own-1", "own-2")

# Each stream that may have several writers has both; all others are the main process's.
_WRITERS = {"receipts": WORKERS, "device_lists": WORKERS}

# By what requests are routed; for others the workers take turns.
_KEYS: dict[str, Callable[[Request], str]] = {
    "by user": lambda request: request.device.user_id,
    "by token": lambda request: request.device.token,
    "by room": lambda request: request.path.split("/")[2],
}
_ROUTINGS = ("by user", "by token", "round robin")
_ROUTINGS_OF = dict.fromkeys(("receipts", "rooms"), (*_ROUTINGS, "by room"))

# How long until both workers have heard of what has changed.
_REPLICATED_S = 0.3


@dataclass(frozen=True, slots=True)
class Clients:
    """All devices: what they send to the workers, and what changes by way of the main process."""

    http: aiohttp.ClientSession
    town: Town
    main: str

    async def move_in(self) -> None:
        """Send what comes before everything else, and talk."""
        await self._send_all((self.main, request) for request in self.town.moving_in())
        # (!) More than one page: with joins on it, whoever asks first pays for the states between.
        for _ in range(25):
            await self._talk(self.town.rooms, random.Random(0))

    async def send(
        self,
        group: Group,
        worker: Callable[[Request], str],
        chance: random.Random,
        *,
        rounds: int,
    ) -> int:
        """Have each device send its requests so many times; return how many requests it were."""
        sent = 0
        for _ in range(rounds):
            users = shuffled(self.town.users, chance)
            for first in range(0, len(users), AT_A_TIME):
                some = users[first : first + AT_A_TIME]
                await self._change(group, some, chance)
                requests = [
                    request
                    for user in some
                    for device in user.devices
                    for request in group.asks(Visit(self.town, user, device, chance))
                ]
                await self._send_all((worker(each), each) for each in shuffled(requests, chance))
                sent += len(requests)
        return sent

    async def _change(self, group: Group, users: Sequence[User], chance: random.Random) -> None:
        """Have happen what these users' requests are about."""
        visits = [Visit(self.town, user, user.devices[0], chance) for user in users]
        if group.follows:
            sync = visits[0].get(f"v3/sync?timeout=0&since={quote(self.town.since)}")
            self.town.since = (await self._answer(self.main, sync))["next_batch"]
        await self._talk(chance.sample(self.town.rooms, group.says), chance)
        if group.changes:
            changes = [each for visit in visits[: group.changing] for each in group.changes(visit)]
            await self._send_all((self.main, request) for request in changes)
        if group.changes or group.says:
            await asyncio.sleep(_REPLICATED_S)

    async def _talk(self, places: Sequence[Room], chance: random.Random) -> None:
        """Have somebody say something in each of these rooms."""
        town = self.town
        said = []
        for room in places:
            user = chance.choice(room.members)
            said.append(Visit(town, user, user.devices[0], chance).say(room))
        answers = await asyncio.gather(*(self._answer(self.main, each) for each in said))
        for room, answer in zip(places, answers, strict=True):
            town.first.setdefault(room.room_id, answer["event_id"])
            town.latest[room.room_id] = answer["event_id"]

    async def _send_all(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Send each request to its address, ``CLIENTS`` at once and started in their order."""
        waiting = iter(requests)

        async def client() -> None:
            for address, request in waiting:
                await self._answer(address, request)

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client())

    async def _answer(self, address: str, request: Request) -> dict[str, Any]:
        async with self.http.request(
            request.method,
            f"http://{address}/_matrix/client/{request.path}",
            headers={"Authorization": f"Bearer {request.device.token}"},
            json=request.body,
        ) as response:
            if not response.ok:
                said = await response.text()
                raise DidNotHappen(f"{request.path}: {response.status} {said}")
            answer: dict[str, Any] = await response.json()
            return answer


def measure(results: Results, *, runs: int) -> None:
    """Measure each group of endpoints in each routing, ``runs`` times."""
    asyncio.run(_measure(results, runs))


async def _measure(results: Results, runs: int) -> None:
    with _synapse() as (main, workers, secret):
        addresses = [worker.address for worker in workers]
        people = populate(main.addresses[0], addresses, secret, users=USERS, rooms=ROOMS)
        town = Town(people.users, people.rooms, people.since)
        # Without connections that a worker had before it was started anew.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            clients = Clients(http, town, main.addresses[0])
            await clients.move_in()
            for run in range(runs):
                for name in GROUPS:
                    routings = _ROUTINGS_OF.get(name, _ROUTINGS)
                    first = run % len(routings)
                    for routing in (*routings[first:], *routings[:first]):
                        figures = await _case(clients, workers, name, routing, seed=run)
                        results.add("endpoints", f"{name}, {routing}", None, **figures)


async def _case(
    clients: Clients, workers: Sequence[Worker], name: str, routing: str, *, seed: int
) -> dict[str, float]:
    # Started anew, or a routing would find in the caches what the one before has left there.
    for process in workers:
        process.stop()
    for process in workers:
        process.spawn()
    for process in workers:
        process.wait_ready()
    addresses = [worker.address for worker in workers]
    group = GROUPS[name]
    # The same in each routing: who asks what in which order, and what has changed before.
    chance, again = random.Random(f"{name} {seed}"), random.Random(seed)
    worker = _routed(routing, addresses)
    with counting(addresses) as cold:
        sent_cold = await clients.send(group, worker, chance, rounds=COLD)
    await clients.send(group, worker, chance, rounds=WARM)
    await clients.send(GROUPS["authentication"], worker, again, rounds=2 * WARM)
    with counting(addresses) as counted:
        sent = await clients.send(group, worker, chance, rounds=MEASURED)
    return {
        "transactions_per_request": counted.transactions / sent,
        "cache_hit_ratio": counted.hit_ratio(),
        "misses_per_request": counted.misses / sent,
        "cold_transactions_per_request": cold.transactions / sent_cold,
    }


@contextmanager
def _synapse() -> Iterator[tuple[Main, list[Worker], str]]:
    """Start Synapse with workers that write; the string is the secret of its registration."""
    with ExitStack() as stack:
        # As in tests/stack/deployment.py, whose workers write nothing.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wr-", dir="/tmp")))
        directory.chmod(0o755)
        postgres = stack.enter_context(Postgres(directory))
        redis = stack.enter_context(Redis(directory))
        places = {
            name: {"path": str(replication_socket(directory, name))} for name in ("main", *WORKERS)
        }
        settings = {**rooms.SETTINGS, "stream_writers": _WRITERS, "instance_map": places}
        shared = SharedConfiguration(directory, postgres, redis, Bridge(directory), settings)
        main = stack.enter_context(Main(shared, [_address()]))
        workers = [
            stack.enter_context(Worker(shared, name, _address(), writes=True)) for name in WORKERS
        ]
        yield main, workers, shared.registration_secret


def _address() -> str:
    return f"127.0.0.1:{free_port()}"


def _routed(routing: str, workers: Sequence[str]) -> Callable[[Request], str]:
    """Return what says to which of these addresses a request goes."""
    key, turns = _KEYS.get(routing), cycle(workers)

    def worker(request: Request) -> str:
        if key is None:
            return next(turns)
        return workers[hashlib.sha256(key(request).encode()).digest()[0] % len(workers)]

    return worker
