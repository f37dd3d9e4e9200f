"""Where users are: the server that nginx picks for one of them, and how many of them each has."""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from whoami_router.identifiers import from_localpart, from_user_id
from whoami_router.nginx_maps import Undecided
from whoami_router.nginx_pools import Pool, refuse_heavy
from whoami_router.ring import Pick, Ring, Server, key_hash
from whoami_router.tokens import native_localpart


class IsToken(ValueError):  # noqa: N818  (the name says what is wrong)
    """What should be a user is an access token, which is not to be repeated."""


def identifier(user: str) -> str:
    """Return what nginx sees of a user ID, a localpart, or a token's ``sha256:...``.

    Raises ValueError, worded for the administrator, without the text: it may be a token.
    """
    try:
        if user.startswith("@"):
            return from_user_id(user)
        if re.fullmatch("sha256:[0-9a-f]{64}", user):
            return user
        found = from_localpart(user)
    except ValueError as exc:
        raise ValueError(
            "is no user: needs @localpart:domain, a localpart, or sha256: and 64 hex digits"
        ) from exc
    if user.startswith("syt_") and native_localpart(user.encode()) is not None:
        raise IsToken("is an access token; those are read from standard input: --tokens whoami")
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """The server of a user in a pool, and why it is that one.

    ``unknown`` is what it depends on besides the user; then there is no key and no pick.
    """

    pool: Pool
    key: str | None
    pick: Pick | None
    unknown: str | None = None


def place(pool: Pool, user: str) -> Place:
    """Return where nginx sends the user of this identifier."""
    try:
        key = pool.key.of(user)
    except Undecided as exc:
        return Place(pool, None, None, str(exc))
    return Place(pool, key, _ring(pool.servers).pick(_hashed(key)))


class Crowd:
    """Many users, each of them once."""

    def __init__(self, identifiers: Iterable[str]) -> None:
        self._identifiers = list(dict.fromkeys(identifiers))
        self._hashes: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self._identifiers)

    def hashes(self, pool: Pool) -> Sequence[int]:
        """Return the hash of each user whom the pool goes by; which is all, but for odd maps."""
        if not pool.key.is_identifier:
            return array("L", (key_hash(_hashed(key)) for key in self._keys(pool) if key))
        if self._hashes is None:
            self._hashes = array("L", (key_hash(_hashed(one)) for one in self._identifiers))
        return self._hashes

    def _keys(self, pool: Pool) -> Iterable[str]:
        for identifier in self._identifiers:
            try:
                yield pool.key.of(identifier)
            except Undecided:
                continue


@dataclass(frozen=True, slots=True)
class Share:
    """What one server has: so many users, a part of all, where its weight makes for so much."""

    server: str
    weight: int
    users: int
    part: float
    expected: float


@dataclass(frozen=True, slots=True)
class Spread:
    """How users are spread over a pool. ``elsewhere`` are those that the ring gives to nobody."""

    pool: Pool
    users: int
    shares: tuple[Share, ...]
    elsewhere: int

    @property
    def fullest(self) -> float:
        """How much more than its weight makes for the fullest server has, as a fraction."""
        return max(self._deviations(), default=0.0)

    @property
    def emptiest(self) -> float:
        """How much less the emptiest has, as a fraction."""
        return -min(self._deviations(), default=0.0)

    def _deviations(self) -> list[float]:
        return [one.part / one.expected - 1 for one in self.shares if one.expected and self.users]


@dataclass(frozen=True, slots=True)
class Change:
    """What other servers would do: how users would be spread, and who would move where."""

    after: Spread
    moves: tuple[tuple[str | None, str | None, int], ...]

    @property
    def moved(self) -> int:
        """How many users would have another server."""
        return sum(users for *_, users in self.moves)


def spread(pool: Pool, crowd: Crowd) -> Spread:
    """Return how the users are spread over the pool."""
    counts = _ring(pool.servers).counts(crowd.hashes(pool))
    return _spread(pool, counts, len(crowd))


def change(pool: Pool, crowd: Crowd, servers: tuple[Server, ...]) -> Change:
    """Return what happens to the users if the pool has these servers instead."""
    both = _ring(pool.servers).moves(_ring(servers), crowd.hashes(pool))
    counts: Counter[str | None] = Counter()
    for (_, new), users in both.items():
        counts[new] += users
    moves = sorted(
        ((old, new, users) for (old, new), users in both.items() if old != new),
        key=lambda move: -move[2],
    )
    return Change(_spread(replace(pool, servers=servers), counts, len(crowd)), tuple(moves))


def with_changes(
    servers: Sequence[Server],
    *,
    add: Sequence[Server],
    remove: Sequence[str],
    weights: Mapping[str, int],
) -> tuple[Server, ...]:
    """Return the servers with some added, removed, or of another weight.

    Raises ValueError, worded for the administrator, with the servers in front of it.
    """
    present = [server.text for server in servers]
    for text in (*remove, *weights):
        if text not in present:
            raise ValueError(f"has no server {text}, but {', '.join(dict.fromkeys(present))}")
    for server in add:
        if server.text in present:
            raise ValueError(f"has the server {server.text} already; change its weight by --weight")
        present.append(server.text)
    changed = tuple(
        replace(server, weight=weights.get(server.text, server.weight))
        for server in (*servers, *add)
        if server.text not in remove
    )
    if all(server.backup for server in changed):
        raise ValueError("would have no server left")
    refuse_heavy(changed)
    return changed


def _spread(pool: Pool, counts: Counter[str | None], users: int) -> Spread:
    # A server that is written twice is at the same points twice, which count once.
    weights: dict[str, int] = {}
    up = {server.text for server in pool.servers if not server.down and not server.backup}
    for server in pool.servers:
        if not server.backup:
            weights[server.text] = max(weights.get(server.text, 0), server.weight)
    total = sum(weight for text, weight in weights.items() if text in up)
    shares = tuple(
        Share(
            text,
            weight,
            counts[text],
            counts[text] / users if users else 0.0,
            weight / total if text in up else 0.0,
        )
        for text, weight in weights.items()
    )
    return Spread(pool, users, shares, users - sum(share.users for share in shares))


_ring = lru_cache(Ring)  # for the next user


def _hashed(key: str) -> bytes:
    return key.encode(errors="surrogateescape")
