"""What Synapse's workers count while something is measured: their own metrics."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

# The second is how often a cache was asked, known or not.
_HITS, _ASKED = "synapse_util_caches_cache_hits", "synapse_util_caches_cache"
_QUERIES = "synapse_storage_query_time_count"
_TRANSACTIONS = "synapse_http_server_response_db_txn_count_total"
_SAMPLE = re.compile(
    rf"^({_HITS}|{_ASKED}|{_QUERIES}|{_TRANSACTIONS})"
    r'{.*?\b(?:name|verb|servlet)="([^"]*)".*} (\S+)$',
    re.MULTILINE,
)


class Counted(Counter[tuple[str, str]]):
    """What was counted, by metric and label."""

    @property
    def queries(self) -> int:
        """How many queries there were of any kind, also of what a worker does anyway."""
        return self._total(_QUERIES)

    @property
    def transactions(self) -> int:
        """How many transactions the requests of clients made."""
        return self._total(_TRANSACTIONS) - self._total(_TRANSACTIONS, "Replication")

    @property
    def misses(self) -> int:
        """How often a cache did not know what it was asked."""
        return self._total(_ASKED) - self._total(_HITS)

    def hit_ratio(self, cache: str = "") -> float:
        """Return which share of what was asked was known: by this cache, by default by all."""
        return self._total(_HITS, cache) / self._total(_ASKED, cache)

    def _total(self, metric: str, label: str = "") -> int:
        """Return how often it was counted with labels that begin with this one."""
        return sum(n for (name, of), n in self.items() if name == metric and of.startswith(label))


@contextmanager
def counting(addresses: Sequence[str]) -> Iterator[Counted]:
    """Count what these workers do meanwhile; it is known afterwards."""
    counted = Counted()
    before = _read(addresses)
    yield counted
    counted.update(_read(addresses))
    counted.subtract(before)


def _read(addresses: Sequence[str]) -> Counted:
    """Return what these workers have counted since they were started."""
    counted = Counted()
    for address in addresses:
        unix = address.removeprefix("unix:") if address.startswith("unix:") else None
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=unix), trust_env=False, timeout=60
        ) as http:
            metrics = http.get(f"http://{'worker' if unix else address}/_synapse/metrics").text
        for metric, label, value in _SAMPLE.findall(metrics):
            counted[metric, label] += int(float(value))
    return counted
