"""The consistent hash of nginx: which server of an upstream a key goes to; pure.

nginx's documentation says only that it is compatible with Perl's Cache::Memcached::Fast. What is
here is what nginx does (``hash key consistent``); tests/nginx/test_ring.py compares the two.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

_POINTS_PER_WEIGHT = 160

# So many points nginx passes by, of servers that are down or were tried, before it gives up the
# ring and takes turns.
_PASSED_BY = 20


@dataclass(frozen=True, slots=True)
class Server:
    """A ``server`` line of an upstream. Its text, as it is written, is what is hashed."""

    text: str
    weight: int = 1
    down: bool = False
    backup: bool = False


@dataclass(frozen=True, slots=True)
class Pick:
    """Where a key goes, and why.

    ``server`` is None if the ring does not say: nginx then takes turns. ``point`` is the first one
    at or after ``hash``, None if nothing is hashed because there is nothing to choose. The servers
    in ``down`` were passed by. ``then`` is the next to be tried if the server cannot be reached.
    """

    hash: int
    server: str | None
    point: int | None = None
    down: tuple[str, ...] = ()
    then: str | None = None


def key_hash(key: bytes) -> int:
    """Return the place of a key on the ring."""
    return crc32(key)


class Ring:
    """The points of the servers of one upstream, in the order in which they are written."""

    def __init__(self, servers: Sequence[Server]) -> None:
        # Backup servers have no points.
        primary = [server for server in servers if not server.backup]
        self._single = len(servers) == 1 and bool(primary)
        # A text that is written twice is two servers at the same points.
        self._up = Counter(server.text for server in primary if not server.down)
        points: dict[int, str] = {}
        for server in primary:
            for point in _points(server):
                points.setdefault(point, server.text)  # of two equal ones the first counts
        self._points = array("L", sorted(points))
        self._texts = [points[point] for point in self._points]

    def pick(self, key: bytes) -> Pick:
        """Return where the key goes."""
        value = key_hash(key)
        order = self.order(key)
        server, then = next(order, None), next(order, None)
        if self._single or not key or not self._points:
            return Pick(value, server)
        start = self._after(value)
        down: dict[str, None] = {}
        for text in self._from(start):
            if text == server:
                break
            down[text] = None
        return Pick(value, server, self._points[start], tuple(down), then)

    def order(self, key: bytes) -> Iterator[str]:
        """Yield the servers in the order in which nginx tries them, until it takes turns."""
        if self._single:
            yield from self._up
        elif key and self._points:
            yield from self._order(self._after(key_hash(key)))

    def counts(self, hashes: Iterable[int]) -> Counter[str | None]:
        """Return how many of the hashes (of keys that are not empty) go to each server."""
        totals: Counter[str | None] = Counter()
        for (server,), number in self._together([self], hashes).items():
            totals[server] += number
        return totals

    def moves(self, after: "Ring", hashes: Iterable[int]) -> Counter[tuple[str | None, str | None]]:
        """Return how many of the hashes go from which server of this ring to which of the other."""
        totals: Counter[tuple[str | None, str | None]] = Counter()
        for (old, new), number in self._together([self, after], hashes).items():
            totals[old, new] += number
        return totals

    @staticmethod
    def _together(
        rings: "Sequence[Ring]", hashes: Iterable[int]
    ) -> Counter[tuple[str | None, ...]]:
        """Return how many hashes go to each combination of servers.

        Every hash between two neighbouring points, of whichever ring, goes to the same.
        """
        edges = array("L", sorted({point for ring in rings for point in ring._points}))
        if not edges:
            return Counter({tuple(ring._at(0) for ring in rings): sum(1 for _ in hashes)})
        segments = Counter(bisect_left(edges, value) for value in hashes)
        totals: Counter[tuple[str | None, ...]] = Counter()
        for segment, number in segments.items():
            edge = edges[segment % len(edges)]
            totals[tuple(ring._at(edge) for ring in rings)] += number
        return totals

    def _at(self, value: int) -> str | None:
        if self._single:
            return next(iter(self._up), None)
        return next(self._order(self._after(value)), None) if self._points else None

    def _after(self, value: int) -> int:
        """Return the index of the first point at or after the value."""
        return bisect_left(self._points, value) % len(self._points)

    def _from(self, start: int) -> Iterator[str]:
        """Yield the servers of the points that nginx looks at."""
        for index in range(start, start + _PASSED_BY + 1):
            yield self._texts[index % len(self._texts)]

    def _order(self, start: int) -> Iterator[str]:
        untried = self._up.copy()
        for text in self._from(start):
            # After a server nginx looks at the same point again: its name may have more addresses.
            while untried[text]:
                untried[text] -= 1
                yield text


def _points(server: Server) -> Iterator[int]:
    """Yield the points of one server; each depends on the one before."""
    base = crc32(b"\0".join(_host_and_port(server.text)))
    point = 0
    for _ in range(server.weight * _POINTS_PER_WEIGHT):
        point = crc32(point.to_bytes(4, "little"), base)
        yield point


def _host_and_port(text: str) -> tuple[bytes, bytes]:
    """Return what is hashed of a server: a port that is not written is not in it."""
    if text[:5].lower() == "unix:":
        return text[5:].encode(errors="surrogateescape"), b""
    host, colon, port = text.rpartition(":")
    if not colon or not all(digit in "0123456789" for digit in port):
        host, port = text, ""
    return host.encode(errors="surrogateescape"), port.encode()
