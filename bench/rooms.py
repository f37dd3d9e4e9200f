"""Those who use the real Synapse: users with their devices, and the rooms they share."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeVar
from urllib.parse import quote

from tests.stack.matrix import Device, Matrix
from tests.stack.process import DidNotHappen

DEVICES = 3
"""How many each user has."""

_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}

SETTINGS = {
    # Without these it would take hours to fill the rooms.
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    # (!) By default a worker remembers 500 tokens: half of those of 300 users, but not all. Round
    # robin would pay for that, and it says more about the number of users than about routing.
    "caches": {"global_factor": 5},
}
"""Synapse's, for so many people."""

_CLIENT = "/_matrix/client/v3"

# At once; Synapse's main process has one processor, however many ask it.
_THREADS = 8

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class User:
    """A user's devices, and the filter that all of them sync with."""

    devices: tuple[Device, ...]
    filter_id: str


@dataclass(frozen=True, slots=True)
class Room:
    """A room and who is in it."""

    room_id: str
    members: tuple[User, ...]


@dataclass(frozen=True, slots=True)
class Population:
    """Everybody, everywhere; ``since`` is a position after all of them have joined."""

    users: tuple[User, ...]
    rooms: tuple[Room, ...]
    since: str


def populate(
    main: str, workers: Sequence[str], secret: str, *, users: int, rooms: int
) -> Population:
    """Make the users and the rooms: who is in which room is the same each time.

    The addresses are those of Synapse's main process and of the workers that take half of the
    work off it, ``secret`` is what it registers users with. The largest room has everybody, the
    n-th largest about n to the power of 0.7 times fewer: with 300 users and 60 rooms, the smallest
    has seventeen, and a user is in nine on average.
    """
    chance = random.Random(0)
    with ExitStack() as stack:

        def client(address: str) -> Matrix:
            return stack.enter_context(Matrix(f"http://{address}"))

        asked = client(main)
        people = _each(lambda number: _user(asked, secret, number), range(users))
        sizes = [round(users / number**0.7) for number in range(1, rooms + 1)]
        members = [tuple(chance.sample(people, size)) for size in sizes]
        # Each room is filled by one worker, one member after the other, so that its history does
        # not fork.
        fillers = cycle([client(address) for address in workers])
        places = _each(lambda both: _room(*both), zip(fillers, members, strict=False))
        since = asked.sync(places[0].members[0].devices[0]).json()["next_batch"]
    return Population(people, places, since)


def shuffled(items: Sequence[T], chance: random.Random) -> list[T]:
    """Return these in another order."""
    return chance.sample(items, len(items))


def _each(function: Callable[[T], U], items: Iterable[T]) -> tuple[U, ...]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return tuple(pool.map(function, items))


def _user(matrix: Matrix, secret: str, number: int) -> User:
    name = f"user{number}"
    first = matrix.register(name, secret=secret)
    devices = (first, *(matrix.log_in(name) for _ in range(DEVICES - 1)))
    # As Element's, which has it stored once and then names it.
    wanted = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 20}}}
    path = f"{_CLIENT}/user/{quote(first.user_id)}/filter"
    return User(devices, _post(matrix, path, first, wanted)["filter_id"])


def _room(matrix: Matrix, members: tuple[User, ...]) -> Room:
    creator, *others = (user.devices[0] for user in members)
    room_id = _post(matrix, f"{_CLIENT}/createRoom", creator, {"preset": "public_chat"})["room_id"]
    for device in others:
        _post(matrix, f"{_CLIENT}/join/{quote(room_id)}", device, {})
    return Room(room_id, members)


def _post(matrix: Matrix, path: str, device: Device, body: Mapping[str, Any]) -> dict[str, Any]:
    response = matrix.request("POST", path, device, body=body)
    if not response.is_success:
        raise DidNotHappen(f"{path}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer
