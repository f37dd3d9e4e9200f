"""What is counted, as Prometheus reads it."""

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from whoami_router import __version__
from whoami_router.resolver import Lookup, Memory, Resolver, Source
from whoami_router.whoami import (
    Caller,
    LeftAlone,
    Owner,
    ServerState,
    TokenUnanswerable,
    WhoamiUnavailable,
)

# From a lookup that takes no time to one that takes --whoami-timeout, and some more.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_OUTCOMES = ("owner", "rejected", "unavailable", "unanswerable", "left_alone", "error")


class Metrics:
    """All metrics of one service; no label holds a user or a token.

    ``resolves`` counts requests by the source of their answer. It is a plain dictionary because
    it is counted at each request, and a counter of prometheus_client's takes many times as long.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        # A second time series for each counter, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.resolves: dict[str, int] = dict.fromkeys(
            [*(source.value for source in Source), "error"], 0
        )
        self._clock = clock
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._lookups = Counter(
            "whoami_router_lookups",
            "Lookups of a token's owner, by what came of them.",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in _OUTCOMES:  # a rate needs the zero before the first one
            self._lookups.labels(outcome)
        self._duration = Histogram(
            "whoami_router_lookup_duration_seconds",
            "How long Synapse took to answer, or to fail to.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def timed(self, lookup: Lookup) -> Lookup:
        """Return the same lookup, counted by its outcome and timed."""

        async def timed_lookup(
            token: bytes, caller: Caller, user_id: str | None = None
        ) -> Owner | None:
            start = self._clock()
            outcome = "error"
            try:
                owner = await lookup(token, caller, user_id)
                outcome = "rejected" if owner is None else "owner"
            except LeftAlone:
                outcome = "left_alone"
                raise
            except TokenUnanswerable:
                outcome = "unanswerable"
                raise
            except WhoamiUnavailable:
                outcome = "unavailable"
                raise
            finally:
                self._lookups.labels(outcome).inc()
                if outcome != "left_alone":  # which takes no time, and nobody was asked
                    self._duration.observe(self._clock() - start)
            return owner

        return timed_lookup

    def watch(self, resolver: Resolver, servers: Callable[[], Sequence[ServerState]]) -> None:
        """Show the state of these, whenever the metrics are read."""
        self._registry.register(_State(self.resolves, resolver, servers))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as text and its media type, chosen by an Accept header."""
        try:
            encode, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # what it says is not what the library expects
            encode, media_type = choose_encoder("")
        return encode(self._registry), media_type


class _State(Collector):
    """What is counted anyway, or is a state and no count."""

    def __init__(
        self,
        resolves: dict[str, int],
        resolver: Resolver,
        servers: Callable[[], Sequence[ServerState]],
    ) -> None:
        self._resolves = resolves
        self._resolver = resolver
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        """Yield what is true at this moment."""
        build = GaugeMetricFamily(
            "whoami_router_build_info", "1, and the version that runs.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build

        resolves = CounterMetricFamily(
            "whoami_router_resolves",
            "Requests by where their answer comes from (X-User-Identifier-Source).",
            labels=["source"],
        )
        for source, count in self._resolves.items():
            resolves.add_metric([source], count)
        yield resolves

        resolver = self._resolver
        yield GaugeMetricFamily(
            "whoami_router_lookups_in_flight",
            "Lookups that wait for Synapse now.",
            value=resolver.lookups_in_flight,
        )
        yield GaugeMetricFamily(
            "whoami_router_lookups_limit",
            "Lookups that may wait at once (--max-lookups).",
            value=resolver.max_lookups,
        )
        yield CounterMetricFamily(
            "whoami_router_lookups_shed",
            "Lookups for which there was no room; their requests were routed by the fallback.",
            value=resolver.shed,
        )
        yield from _memory(
            "owners", "Tokens with a known owner", resolver.owners, option="--cache-size"
        )
        yield from _memory(
            "rejections", "Tokens without an owner", resolver.rejections, option="--rejected-size"
        )

        away = GaugeMetricFamily(
            "whoami_router_synapse_away",
            "1 while this URL is left alone because it failed, else 0.",
            labels=["url"],
        )
        losses = CounterMetricFamily(
            "whoami_router_synapse_losses",
            "How many times this URL began to be left alone.",
            labels=["url"],
        )
        for server in self._servers():
            away.add_metric([server.url], server.away)
            losses.add_metric([server.url], server.losses)
        yield away
        yield losses


def _memory(name: str, what: str, memory: Memory, *, option: str) -> Iterable[Metric]:
    name = f"whoami_router_remembered_{name}"
    yield GaugeMetricFamily(name, f"{what} that are remembered.", value=memory.count)
    yield GaugeMetricFamily(
        f"{name}_limit", f"{what} that are remembered at most ({option}).", value=memory.limit
    )
    yield CounterMetricFamily(
        f"{name}_evicted", f"{what} that were forgotten to make room.", value=memory.evicted
    )
