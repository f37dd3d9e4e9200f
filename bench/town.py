"""What people ask of Synapse besides syncs, group by group: makes requests, and sends none.

A group is what one would route alike. Before some users send its requests, something changes that
these are about, or the answer would be in the caches for good.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import quote

from bench.rooms import Room, User
from tests.stack.matrix import Device

# How many one-time keys each device has: more than others claim while everything is measured, as
# what claims of one that has none left costs more.
_ONE_TIME_KEYS = 100


@dataclass(frozen=True, slots=True)
class Request:
    """What a device asks; ``path`` begins after ``/_matrix/client/``."""

    device: Device
    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Town:
    """Who lives there and where they meet.

    In each room, ``latest`` is what was said last and ``first`` what all of it answers, as a
    thread. ``since`` is where a sync was before the latest changes.
    """

    users: tuple[User, ...]
    rooms: tuple[Room, ...]
    since: str
    first: dict[str, str] = field(default_factory=dict)
    latest: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def number(self) -> int:
        """Return one that was not used before."""
        return next(self._numbers)

    def moving_in(self) -> Iterator[Request]:
        """Give everybody what the groups ask for: keys, a backup, account data and push rules."""
        backup = {
            "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
            "auth_data": {"public_key": "key"},
        }
        for user in self.users:
            visits = [Visit(self, user, device, random.Random(0)) for device in user.devices]
            for visit in visits:
                yield visit.upload(_ONE_TIME_KEYS, device_keys=True)
            yield visits[0].post("v3/room_keys/version", backup)
            yield from _new_account_data(visits[0])
            yield from _new_push_rule(visits[0])


@dataclass(frozen=True, slots=True)
class Visit:
    """A device of a user's, and what it is about to do."""

    town: Town
    user: User
    device: Device
    chance: random.Random

    @property
    def own(self) -> str:
        """Where what belongs to the user is."""
        return f"v3/user/{quote(self.device.user_id)}"

    def room(self) -> Room:
        """Return one that the user is in."""
        return self.chance.choice([room for room in self.town.rooms if self.user in room.members])

    def get(self, path: str) -> Request:
        """Ask for something."""
        return Request(self.device, "GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> Request:
        """Do something."""
        return Request(self.device, "POST", path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> Request:
        """Change something."""
        return Request(self.device, "PUT", path, body)

    def say(self, room: Room) -> Request:
        """Say something in a room, in answer to what was said first there."""
        body: dict[str, Any] = {"msgtype": "m.text", "body": "Curiouser and curiouser!"}
        if first := self.town.first.get(room.room_id):
            body["m.relates_to"] = {"rel_type": "m.thread", "event_id": first}
        number = self.town.number()
        return self.put(f"v3/rooms/{quote(room.room_id)}/send/m.room.message/{number}", body)

    def upload(self, number: int, *, device_keys: bool = False) -> Request:
        """Upload so many one-time keys, the first time with the keys of the device."""
        user_id, device_id = self.device.user_id, self.device.device_id
        signatures = {user_id: {f"ed25519:{device_id}": "signature"}}
        body: dict[str, Any] = {
            "one_time_keys": {
                f"signed_curve25519:{self.town.number()}": {"key": "key", "signatures": signatures}
                for _ in range(number)
            }
        }
        if device_keys:
            body["device_keys"] = {
                "user_id": user_id,
                "device_id": device_id,
                "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
                "keys": {f"{kind}:{device_id}": "key" for kind in ("curve25519", "ed25519")},
                "signatures": signatures,
            }
        return self.post("v3/keys/upload", body)


Requests = Callable[[Visit], Iterator[Request]]


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints that one would route alike: what each device asks, and what changes before."""

    asks: Requests
    changes: Requests | None = None
    """What each user changes beforehand who is about to ask."""
    changing: int | None = None
    """How many of these users do so, if not all."""
    says: int = 0
    """In how many rooms something is said beforehand."""
    follows: bool = False
    """Whether the requests are about what has changed since the users before these."""


def _whoami(visit: Visit) -> Iterator[Request]:
    for _ in range(2):
        yield visit.get("v3/account/whoami")


def _account_data(visit: Visit) -> Iterator[Request]:
    yield visit.get(f"{visit.own}/account_data/m.direct")
    yield visit.get(f"{visit.own}/rooms/{quote(visit.room().room_id)}/tags")


def _new_account_data(visit: Visit) -> Iterator[Request]:
    said = {visit.device.user_id: [str(visit.town.number())]}
    yield visit.put(f"{visit.own}/account_data/m.direct", said)
    tag = f"rooms/{quote(visit.room().room_id)}/tags/m.favourite"
    yield visit.put(f"{visit.own}/{tag}", {"order": visit.chance.random()})


def _push_rules(visit: Visit) -> Iterator[Request]:
    yield visit.get("v3/pushrules/")


def _new_push_rule(visit: Visit) -> Iterator[Request]:
    rule = {"actions": ["notify"], "pattern": f"word{visit.town.number()}"}
    yield visit.put("v3/pushrules/global/content/word", rule)


def _receipts(visit: Visit) -> Iterator[Request]:
    room_id = visit.room().room_id
    path, event = f"v3/rooms/{quote(room_id)}", visit.town.latest[room_id]
    yield visit.post(f"{path}/receipt/m.read/{quote(event)}", {})
    yield visit.post(f"{path}/read_markers", {"m.fully_read": event, "m.read": event})


def _device_lists(visit: Visit) -> Iterator[Request]:
    yield visit.get("v3/devices")
    yield visit.upload(1)


def _renamed_device(visit: Visit) -> Iterator[Request]:
    device_id = visit.chance.choice(visit.user.devices).device_id
    name = {"display_name": f"Device {visit.town.number()}"}
    yield visit.put(f"v3/devices/{device_id}", name)


def _keys(visit: Visit) -> Iterator[Request]:
    room, chance = visit.room(), visit.chance
    others = [member.devices[0].user_id for member in chance.sample(room.members, 5)]
    yield visit.post("v3/keys/query", {"device_keys": {user_id: [] for user_id in others}})
    yield visit.get(f"v3/keys/changes?from={quote(visit.town.since)}&to=")
    other = chance.choice(chance.choice(room.members).devices)
    claimed = {other.user_id: {other.device_id: "signed_curve25519"}}
    yield visit.post("v3/keys/claim", {"one_time_keys": claimed})
    yield visit.get("v3/room_keys/version")


def _client_reader(visit: Visit) -> Iterator[Request]:
    yield visit.get("v3/joined_rooms")
    yield visit.get("v3/capabilities")
    yield visit.get(f"{visit.own}/filter/{visit.user.filter_id}")
    other = visit.chance.choice(visit.room().members).devices[0]
    yield visit.get(f"v3/profile/{quote(other.user_id)}")
    yield visit.get("v3/notifications")


def _renamed_user(visit: Visit) -> Iterator[Request]:
    name = {"displayname": f"User {visit.town.number()}"}
    yield visit.put(f"v3/profile/{quote(visit.device.user_id)}/displayname", name)


def _rooms(visit: Visit) -> Iterator[Request]:
    room_id = visit.room().room_id
    first, latest = (quote(events[room_id]) for events in (visit.town.first, visit.town.latest))
    for version, path in (
        ("v3", "messages?dir=b&limit=20"),
        ("v3", "members"),
        ("v3", "state"),
        ("v3", f"event/{latest}"),
        ("v3", f"context/{latest}"),
        ("v1", f"relations/{first}"),
        ("v1", "threads"),
    ):
        yield visit.get(f"{version}/rooms/{quote(room_id)}/{path}")


GROUPS = {
    "authentication": Group(_whoami),
    "account data": Group(_account_data, _new_account_data),
    "push rules": Group(_push_rules, _new_push_rule),
    "receipts": Group(_receipts, says=15),
    "device lists": Group(_device_lists, _renamed_device),
    "keys": Group(_keys, _renamed_device, follows=True),
    "client reader": Group(_client_reader, _renamed_user, changing=1, says=1),
    "rooms": Group(_rooms, says=5),
}
