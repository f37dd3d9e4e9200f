"""Which endpoints besides sync gain if all requests of one user reach the same worker.

A real Synapse with two equal workers, which are asked directly: this client is the routing. 60
users with three devices each are in 15 rooms. Users take turns, ten at a time. First something
changes that these requests are about; the main process is told, not the workers. Then each device
of these users sends the requests of one group of endpoints, in random order, eight at a time.

Each routing has the same requests in the same order, and workers that were just started. The first
round is what workers do not know yet (``cold_...``), a few more let every token meet every worker
that it will meet, and the last ones are measured.

Both workers write receipts and device lists. Of to-device messages, account data, presence and
push rules Synapse allows one writer only, so that there is no choice of a worker for what writes
these. Nor is there for ``sendToDevice`` and for the presence of somebody else: workers other than
the writer answer 500. Measured is what any worker answers.

Only counts are compared, of both workers together; times would say how busy the machine was.
``queries_per_request`` includes what workers do of their own accord and for each other, of which
there is more the longer it takes: ``transactions_per_request`` is the requests' own. Misses of the
caches that every request asks, whoever it is from, are ``auth_misses_...``.

The limits: caches have room for everybody, and only the cold figures say something about those
that have not. How much a group gains depends on how often something changes: here it is once for
each user, or once in a room, between two visits of a user's devices. No room is encrypted, nobody
is from elsewhere, and the three devices of a user are equally busy.
"""

import asyncio
import hashlib
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import click
import httpx

from bench.results import Results
from bench.rooms import LIMITS, Room, User
from tests.stack.matrix import Device, Matrix
from tests.stack.postgres import Postgres
from tests.stack.process import DidNotHappen, Process, free_port
from tests.stack.redis import Redis
from tests.stack.synapse import Bridge, Main, SharedConfiguration, Synapse

USERS = 60
DEVICES = 3
ROOMS = 15

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

_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}

SETTINGS = {
    **LIMITS,
    "rc_room_creation": _UNLIMITED,
    "rc_profile": _UNLIMITED,
    "rc_presence": {"per_user": _UNLIMITED},
    "presence": {"enabled": True},
    # Each stream that may have several writers has both; all others are the main process's.
    "stream_writers": {"receipts": list(WORKERS), "device_lists": list(WORKERS)},
    "caches": {"global_factor": 5},  # as in bench/syncs.py
}

# The caches that every request asks, whatever it is about.
_AUTHENTICATION = frozenset(
    (
        "get_user_by_access_token",
        "mark_access_token_as_used",
        "get_user_locked_status",
        "get_expiration_ts_for_user",
        "client_ip_last_seen",
    )
)

# How long until both workers have heard of what has changed.
_REPLICATED_S = 0.3

_CLIENT = "/_matrix/client/v3"
_RELATIONS = "/_matrix/client/v1"

_HITS, _ASKED = "synapse_util_caches_cache_hits", "synapse_util_caches_cache"
_QUERIES = "synapse_storage_query_time_count"
_TRANSACTIONS = "synapse_storage_transaction_time_count_total"
_OF_SERVLET = "synapse_http_server_response_db_txn_count_total"
_SAMPLE = re.compile(
    rf"^({_HITS}|{_ASKED}|{_QUERIES}|{_TRANSACTIONS}|{_OF_SERVLET})"
    r'{.*?\b(?:name|verb|desc|servlet)="([^"]*)".*} (\S+)$',
    re.MULTILINE,
)

T = TypeVar("T")

Counted = Counter[tuple[str, str]]
"""What workers have counted, by metric and label."""


class _Writer(Synapse):
    """A generic worker which others can ask to write what it is a writer of."""

    def __init__(self, shared: SharedConfiguration, name: str) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        super().__init__(
            "synapse.app.generic_worker",
            name,
            [self.address],
            shared=shared,
            own={
                "worker_app": "synapse.app.generic_worker",
                "worker_name": name,
                "worker_listeners": [
                    {
                        "type": "http",
                        "port": port,
                        "bind_addresses": ["127.0.0.1"],
                        "resources": [{"names": ["client", "metrics"]}],
                    },
                    {
                        "type": "http",
                        **_replication(shared.directory, name),
                        "resources": [{"names": ["replication"]}],
                    },
                ],
            },
        )


@dataclass(frozen=True, slots=True)
class Request:
    """What a device asks, and of which room if it is about one."""

    device: Device
    method: str
    path: str
    body: Any = None
    room_id: str | None = None


@dataclass(slots=True)
class Town:
    """Who lives there and where they meet; ``latest`` is what was said last in each room.

    ``first`` is the message that everything else in its room answers, as a thread.
    """

    users: tuple[User, ...]
    rooms: tuple[Room, ...]
    since: str
    first: dict[str, str]
    latest: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def rooms_of(self, user: User) -> list[Room]:
        """Return the rooms that a user is in."""
        return [room for room in self.rooms if user in room.members]


Send = Callable[[Request], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints that one would route alike.

    ``requests`` are those of one device, ``change`` is what happens before some users send theirs.
    """

    requests: Callable[[Town, User, Device, random.Random], Iterator[Request]]
    change: Callable[[Town, Sequence[User], random.Random], Iterator[Request]] | None = None
    says: int = 0
    """In how many rooms something is said before."""
    follows: bool = False
    """Whether the requests are about what has changed since the users before these."""


def _whoami(_town: Town, _user: User, device: Device, _: random.Random) -> Iterator[Request]:
    for _time in range(2):
        yield Request(device, "GET", f"{_CLIENT}/account/whoami")


def _keys(town: Town, user: User, device: Device, chance: random.Random) -> Iterator[Request]:
    room = chance.choice(town.rooms_of(user))
    others = chance.sample(room.members, 5)
    wanted: dict[str, list[str]] = {member.devices[0].user_id: [] for member in others}
    yield Request(device, "POST", f"{_CLIENT}/keys/query", {"device_keys": wanted})
    yield Request(device, "GET", f"{_CLIENT}/keys/changes?from={quote(town.since)}&to=")
    other = chance.choice(chance.choice(room.members).devices)
    claimed = {other.user_id: {other.device_id: "signed_curve25519"}}
    yield Request(device, "POST", f"{_CLIENT}/keys/claim", {"one_time_keys": claimed})
    yield Request(device, "GET", f"{_CLIENT}/room_keys/version")


def _device_lists(town: Town, _user: User, device: Device, _: random.Random) -> Iterator[Request]:
    yield Request(device, "GET", f"{_CLIENT}/devices")
    yield _upload(town, device, 1)


def _account_data(
    town: Town, user: User, device: Device, chance: random.Random
) -> Iterator[Request]:
    yield Request(device, "GET", f"{_of(device)}/account_data/m.direct")
    room = chance.choice(town.rooms_of(user))
    yield Request(device, "GET", f"{_of(device)}/rooms/{quote(room.room_id)}/tags")


def _receipts(town: Town, user: User, device: Device, chance: random.Random) -> Iterator[Request]:
    room_id = chance.choice(town.rooms_of(user)).room_id
    path, event = f"{_CLIENT}/rooms/{quote(room_id)}", town.latest[room_id]
    yield Request(device, "POST", f"{path}/receipt/m.read/{quote(event)}", {}, room_id)
    read = {"m.fully_read": event, "m.read": event}
    yield Request(device, "POST", f"{path}/read_markers", read, room_id)


def _presence(_town: Town, _user: User, device: Device, _: random.Random) -> Iterator[Request]:
    yield Request(device, "GET", f"{_CLIENT}/presence/{quote(device.user_id)}/status")


def _push_rules(_town: Town, _user: User, device: Device, _: random.Random) -> Iterator[Request]:
    yield Request(device, "GET", f"{_CLIENT}/pushrules/")


def _client_reader(
    town: Town, user: User, device: Device, chance: random.Random
) -> Iterator[Request]:
    yield Request(device, "GET", f"{_CLIENT}/joined_rooms")
    yield Request(device, "GET", f"{_CLIENT}/capabilities")
    yield Request(device, "GET", f"{_of(device)}/filter/{user.filter_id}")
    other = chance.choice(chance.choice(town.rooms_of(user)).members).devices[0]
    yield Request(device, "GET", f"{_CLIENT}/profile/{quote(other.user_id)}")
    yield Request(device, "GET", f"{_CLIENT}/notifications")


def _rooms(town: Town, user: User, device: Device, chance: random.Random) -> Iterator[Request]:
    room_id = chance.choice(town.rooms_of(user)).room_id
    first, latest = quote(town.first[room_id]), quote(town.latest[room_id])
    room = f"/rooms/{quote(room_id)}"
    for path in (
        f"{_CLIENT}{room}/messages?dir=b&limit=20",
        f"{_CLIENT}{room}/members",
        f"{_CLIENT}{room}/state",
        f"{_CLIENT}{room}/event/{latest}",
        f"{_CLIENT}{room}/context/{latest}",
        f"{_RELATIONS}{room}/relations/{first}",
        f"{_RELATIONS}{room}/threads",
    ):
        yield Request(device, "GET", path, room_id=room_id)


def _renamed_devices(town: Town, users: Sequence[User], chance: random.Random) -> Iterator[Request]:
    for user in users:
        device = chance.choice(user.devices)
        name = {"display_name": f"Device {next(town.numbers)}"}
        yield Request(device, "PUT", f"{_CLIENT}/devices/{device.device_id}", name)


def _new_account_data(
    town: Town, users: Sequence[User], chance: random.Random
) -> Iterator[Request]:
    for user in users:
        device = user.devices[0]
        said = {device.user_id: [str(next(town.numbers))]}
        yield Request(device, "PUT", f"{_of(device)}/account_data/m.direct", said)
        room = quote(chance.choice(town.rooms_of(user)).room_id)
        order = {"order": chance.random()}
        yield Request(device, "PUT", f"{_of(device)}/rooms/{room}/tags/m.favourite", order)


def _new_presence(town: Town, users: Sequence[User], _: random.Random) -> Iterator[Request]:
    for user in users:
        device = user.devices[0]
        state = {"presence": "online", "status_msg": str(next(town.numbers))}
        yield Request(device, "PUT", f"{_CLIENT}/presence/{quote(device.user_id)}/status", state)


def _new_push_rules(town: Town, users: Sequence[User], _: random.Random) -> Iterator[Request]:
    for user in users:
        rule = {"actions": ["notify"], "pattern": f"word{next(town.numbers)}"}
        path = f"{_CLIENT}/pushrules/global/content/word"
        yield Request(user.devices[0], "PUT", path, rule)


def _renamed_user(town: Town, users: Sequence[User], _: random.Random) -> Iterator[Request]:
    device = users[0].devices[0]
    name = {"displayname": f"User {next(town.numbers)}"}
    yield Request(device, "PUT", f"{_CLIENT}/profile/{quote(device.user_id)}/displayname", name)


GROUPS = {
    "authentication": Group(_whoami),
    "keys": Group(_keys, _renamed_devices, follows=True),
    "device lists": Group(_device_lists, _renamed_devices),
    "account data": Group(_account_data, _new_account_data),
    "receipts": Group(_receipts, says=ROOMS),
    "presence": Group(_presence, _new_presence),
    "push rules": Group(_push_rules, _new_push_rules),
    "client reader": Group(_client_reader, _renamed_user, says=1),
    "rooms": Group(_rooms, says=ROOMS // 3),
}

_KEYS: dict[str, Callable[[Request], str]] = {
    "by user": lambda request: request.device.user_id,
    "by token": lambda request: request.device.token,
    "by room": lambda request: request.room_id or "",
}
_ROUTINGS = ("by user", "by token", "round robin")
_ROUTINGS_OF = {"receipts": (*_ROUTINGS, "by room"), "rooms": (*_ROUTINGS, "by room")}


class Clients:
    """All devices: what they send to the workers, and what changes by way of the main process."""

    def __init__(self, town: Town, main: str, workers: Sequence[str]) -> None:
        self._town = town
        self._main = main
        self._workers = workers

    async def send(self, group: Group, routing: str, chance: random.Random, rounds: int) -> int:
        """Have each device send its requests so many times; return how many requests it were."""
        sent = 0
        turns = cycle(self._workers)

        def worker(request: Request) -> str:
            key = _KEYS.get(routing)
            return _hashed(key(request), self._workers) if key else next(turns)

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
            for _ in range(rounds):
                users = _shuffled(self._town.users, chance)
                for first in range(0, len(users), AT_A_TIME):
                    some = users[first : first + AT_A_TIME]
                    await self._change(http, group, some, chance)
                    requests = [
                        request
                        for user in some
                        for device in user.devices
                        for request in group.requests(self._town, user, device, chance)
                    ]
                    turn = _shuffled(requests, chance)
                    await _all(http, [(worker(request), request) for request in turn])
                    sent += len(turn)
        return sent

    async def _change(
        self,
        http: aiohttp.ClientSession,
        group: Group,
        users: Sequence[User],
        chance: random.Random,
    ) -> None:
        town = self._town
        if group.follows:
            device = users[0].devices[0]
            sync = Request(device, "GET", f"{_CLIENT}/sync?timeout=0&since={quote(town.since)}")
            town.since = (await _answer(http, self._main, sync))["next_batch"]
        said = {
            room.room_id: _message(town, chance.choice(room.members).devices[0], room.room_id)
            for room in chance.sample(town.rooms, group.says)
        }
        answers = await asyncio.gather(*(_answer(http, self._main, each) for each in said.values()))
        for room_id, answer in zip(said, answers, strict=True):
            town.latest[room_id] = answer["event_id"]
        changes = group.change(town, users, chance) if group.change else ()
        await _all(http, [(self._main, request) for request in changes])
        await asyncio.sleep(_REPLICATED_S)


def measure(results: Results, *, runs: int, groups: Iterable[str] = GROUPS) -> None:
    """Measure each group of endpoints in each routing, ``runs`` times."""
    for _ in _measured(results, runs, groups):
        pass


def _measured(
    results: Results, runs: int, groups: Iterable[str]
) -> Iterator[tuple[str, int, Counted]]:
    """Measure; yield each case, the number of its requests and all that was counted."""
    with _synapse() as (main, workers, town):
        for run in range(runs):
            for name in groups:
                routings = _ROUTINGS_OF.get(name, _ROUTINGS)
                first = run % len(routings)
                for routing in (*routings[first:], *routings[:first]):
                    sent, counted, figures = _case(main, workers, town, name, routing, seed=run)
                    case = f"{name} / {routing}"
                    results.add("own_endpoints", case, None, **figures)
                    yield case, sent, counted


def _case(
    main: Main, workers: Sequence[_Writer], town: Town, name: str, routing: str, *, seed: int
) -> tuple[int, Counted, dict[str, float]]:
    # Started anew, or a routing would find in the caches what the one before has left there.
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.spawn()
    for worker in workers:
        worker.wait_ready()
    addresses = [worker.address for worker in workers]
    clients = Clients(town, main.addresses[0], addresses)
    # The same in each routing: who asks what in which order, and what has changed before.
    chance = random.Random(f"{name} {seed}")

    def send(rounds: int) -> tuple[int, Counted]:
        before = _counted(addresses)
        sent = asyncio.run(clients.send(GROUPS[name], routing, chance, rounds))
        counted = _counted(addresses)
        counted.subtract(before)
        return sent, counted

    cold_sent, cold = send(COLD)
    send(WARM)
    asyncio.run(clients.send(GROUPS["authentication"], routing, random.Random(seed), 2 * WARM))
    sent, counted = send(MEASURED)
    return (
        sent,
        counted,
        {
            "queries_per_request": _total(counted, _QUERIES) / sent,
            "transactions_per_request": _of_requests(counted) / sent,
            "cache_hit_ratio": _total(counted, _HITS) / (_total(counted, _ASKED) or 1),
            "misses_per_request": sum(_misses(counted).values()) / sent,
            "auth_misses_per_request": _auth_misses(counted) / sent,
            "cold_transactions_per_request": _of_requests(cold) / cold_sent,
            "cold_misses_per_request": sum(_misses(cold).values()) / cold_sent,
            "cold_auth_misses_per_request": _auth_misses(cold) / cold_sent,
        },
    )


@contextmanager
def _synapse() -> Iterator[tuple[Main, list[_Writer], Town]]:
    """Start Synapse with the two workers, and have people move in."""
    with ExitStack() as stack:
        # As in tests/stack/deployment.py, whose workers have nobody who could ask them to write.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wr-", dir="/tmp")))
        directory.chmod(0o755)

        def start(*processes: Process) -> None:
            for process in processes:
                stack.enter_context(process)

        postgres, redis = Postgres(directory), Redis(directory)
        start(postgres, redis)
        places = {name: _replication(directory, name) for name in WORKERS}
        settings = {
            **SETTINGS,
            "instance_map": {"main": {"path": str(directory / "replication.sock")}, **places},
        }
        shared = SharedConfiguration(directory, postgres, redis, Bridge(directory), settings)
        main = Main(shared, [f"127.0.0.1:{free_port()}"])
        workers = [_Writer(shared, name) for name in WORKERS]
        start(main, *workers)
        town = _populate(main, workers, shared.registration_secret)
        yield main, workers, town


def _replication(directory: Path, name: str) -> dict[str, str]:
    return {"path": str(directory / f"{name}-replication.sock")}


def _populate(main: Main, workers: Sequence[_Writer], secret: str) -> Town:
    """Make users and rooms as those of bench/rooms.py, fewer of both, and with keys."""
    chance = random.Random(0)
    with ExitStack() as stack:
        matrix = stack.enter_context(Matrix(f"http://{main.addresses[0]}"))
        fillers = [stack.enter_context(Matrix(f"http://{each.address}")) for each in workers]
        users = _each(lambda number: _user(matrix, secret, number), range(USERS))
        sizes = [round(USERS / number**0.7) for number in range(1, ROOMS + 1)]
        members = [tuple(chance.sample(users, size)) for size in sizes]
        # Everybody is in the first one; each is filled by one worker, or its history would fork.
        rooms = _each(lambda both: _room(*both), zip(cycle(fillers), members, strict=False))
        since = matrix.sync(users[0].devices[0]).json()["next_batch"]
        town = Town(users, rooms, since, first={})
        _each(lambda room: _talk(matrix, town, room), rooms)
        _each(lambda user: _prepare(matrix, town, user), users)
    return town


def _user(matrix: Matrix, secret: str, number: int) -> User:
    name = f"user{number}"
    first = matrix.register(name, secret=secret)
    devices = (first, *(matrix.log_in(name) for _ in range(DEVICES - 1)))
    wanted = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 20}}}
    stored = _call(matrix, Request(first, "POST", f"{_of(first)}/filter", wanted))
    return User(devices, stored["filter_id"])


def _room(matrix: Matrix, members: tuple[User, ...]) -> Room:
    creator, *others = (user.devices[0] for user in members)
    made = Request(creator, "POST", f"{_CLIENT}/createRoom", {"preset": "public_chat"})
    room_id: str = _call(matrix, made)["room_id"]
    for device in others:
        _call(matrix, Request(device, "POST", f"{_CLIENT}/join/{quote(room_id)}", {}))
    return Room(room_id, members)


def _talk(matrix: Matrix, town: Town, room: Room) -> None:
    # (!) More than one page: with joins on it, whoever asks first pays for the states in between.
    for _ in range(25):
        said = _call(matrix, _message(town, room.members[0].devices[0], room.room_id))["event_id"]
        town.first.setdefault(room.room_id, said)
        town.latest[room.room_id] = said


def _prepare(matrix: Matrix, town: Town, user: User) -> None:
    """Give a user what the groups ask for: keys, a backup, account data, tags and push rules."""
    first = user.devices[0]
    for device in user.devices:
        _call(matrix, _upload(town, device, 20, device_keys=True))
    backup = {
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": {"public_key": "key"},
    }
    _call(matrix, Request(first, "POST", f"{_CLIENT}/room_keys/version", backup))
    chance = random.Random(first.user_id)
    for change in (_new_account_data, _new_push_rules, _new_presence):
        for request in change(town, [user], chance):
            _call(matrix, request)


def _upload(town: Town, device: Device, number: int, *, device_keys: bool = False) -> Request:
    """Return an upload of so many one-time keys, the first with the keys of the device."""
    signatures = {device.user_id: {f"ed25519:{device.device_id}": "signature"}}
    keys: dict[str, Any] = {
        "one_time_keys": {
            f"signed_curve25519:{next(town.numbers)}": {"key": "key", "signatures": signatures}
            for _ in range(number)
        }
    }
    if device_keys:
        keys["device_keys"] = {
            "user_id": device.user_id,
            "device_id": device.device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {f"{kind}:{device.device_id}": "key" for kind in ("curve25519", "ed25519")},
            "signatures": signatures,
        }
    return Request(device, "POST", f"{_CLIENT}/keys/upload", keys)


def _message(town: Town, device: Device, room_id: str) -> Request:
    said: dict[str, Any] = {"msgtype": "m.text", "body": "Curiouser and curiouser!"}
    if room_id in town.first:
        said["m.relates_to"] = {"rel_type": "m.thread", "event_id": town.first[room_id]}
    path = f"{_CLIENT}/rooms/{quote(room_id)}/send/m.room.message/{next(town.numbers)}"
    return Request(device, "PUT", path, said)


def _of(device: Device) -> str:
    return f"{_CLIENT}/user/{quote(device.user_id)}"


def _call(matrix: Matrix, request: Request) -> dict[str, Any]:
    response = matrix.request(request.method, request.path, request.device, body=request.body)
    if not response.is_success:
        raise DidNotHappen(f"{request.path}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


async def _all(http: aiohttp.ClientSession, requests: Iterable[tuple[str, Request]]) -> None:
    """Send each request to its address, ``CLIENTS`` at once and started in their order."""
    waiting = iter(requests)

    async def client() -> None:
        for address, request in waiting:
            await _answer(http, address, request)

    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(client())


async def _answer(http: aiohttp.ClientSession, address: str, request: Request) -> dict[str, Any]:
    async with http.request(
        request.method,
        f"http://{address}{request.path}",
        headers={"Authorization": f"Bearer {request.device.token}"},
        json=request.body,
    ) as response:
        if not response.ok:
            raise DidNotHappen(f"{request.path}: {response.status} {await response.text()}")
        answer: dict[str, Any] = await response.json()
        return answer


def _counted(addresses: Iterable[str]) -> Counted:
    """Return what these workers have counted since they were started."""
    counted: Counted = Counter()
    with httpx.Client(trust_env=False, timeout=60) as http:
        for address in addresses:
            metrics = http.get(f"http://{address}/_synapse/metrics").text
            for metric, label, value in _SAMPLE.findall(metrics):
                counted[metric, label] += int(float(value))
    return counted


def _total(counted: Counted, metric: str) -> int:
    return sum(number for (name, _), number in counted.items() if name == metric)


def _of_requests(counted: Counted) -> int:
    """Return how many transactions clients' requests made, and not what a worker does anyway."""
    return sum(
        number
        for (metric, servlet), number in counted.items()
        if metric == _OF_SERVLET and not servlet.startswith("Replication")
    )


def _misses(counted: Counted) -> dict[str, int]:
    """Return how often each cache did not know what it was asked."""
    return {
        cache: asked - counted[_HITS, cache]
        for (metric, cache), asked in counted.items()
        if metric == _ASKED
    }


def _auth_misses(counted: Counted) -> int:
    return sum(number for cache, number in _misses(counted).items() if cache in _AUTHENTICATION)


def _hashed(key: str, choices: Sequence[T]) -> T:
    return choices[hashlib.sha256(key.encode()).digest()[0] % len(choices)]


def _each(function: Callable[[T], Any], items: Iterable[T]) -> tuple[Any, ...]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return tuple(pool.map(function, items))


def _shuffled(items: Sequence[T], chance: random.Random) -> list[T]:
    return chance.sample(items, len(items))


@click.command
@click.option("--runs", default=2)
@click.option("--group", "groups", multiple=True, type=click.Choice(tuple(GROUPS)), default=GROUPS)
@click.option("--detail", is_flag=True, help="Name caches that missed, transactions there were.")
def main(runs: int, groups: Sequence[str], *, detail: bool) -> None:
    """Measure, and print each figure's runs."""
    results = Results()
    for case, sent, counted in _measured(results, runs, groups):
        click.echo(f"{time.ctime()} {case}", err=True)
        if detail:
            click.echo(_detail(case, sent, counted))
    for series in results:
        values = "  ".join(f"{value:8.3f}" for value in series.values)
        click.echo(f"{series.case:28} {series.figure:28} {values}")


def _detail(case: str, sent: int, counted: Counted) -> str:
    """Return how often, per 1,000 requests, caches missed and transactions were made."""
    ran = {desc: n for (metric, desc), n in counted.items() if metric == _TRANSACTIONS}
    of = {servlet: n for (metric, servlet), n in counted.items() if metric == _OF_SERVLET}
    lines = [f"{case}: {sent} requests"]
    for kind, numbers in (("missed", _misses(counted)), ("ran", ran), ("ran by", of)):
        often = sorted(numbers.items(), key=lambda each: -each[1])
        lines += [f"  {kind:6} {n / sent * 1e3:8.1f} {name}" for name, n in often if n]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
