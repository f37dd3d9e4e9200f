"""Counting: what the metrics cost each request, and how long reading them holds others up."""

import asyncio
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.types import Message

from bench.measure import Failed
from bench.memory import remembering
from bench.results import Results
from whoami_router.app import Application
from whoami_router.metrics import Metrics
from whoami_router.settings import Settings
from whoami_router.whoami import Caller, Owner

_CALLS = 200_000
_READS = 500

# What nginx asks.
_SCOPE = {
    "type": "http",
    "path": "/resolve",
    "headers": [
        (b"host", b"whoami_router"),
        (b"authorization", b"Bearer syt_YWxpY2U_aBcDeFgHiJkLmNoPqRsT_a1b2c3"),
        (b"x-original-uri", b"/_matrix/client/v3/sync?since=s726592_8571043&timeout=30000"),
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101"),
    ],
}


def measure(results: Results, *, calls: int = _CALLS, reads: int = _READS) -> None:
    """Measure one run: a hit without HTTP around it, the counting in it, and reading the metrics.

    Raises Failed if what is measured was no hit.
    """
    metrics = Metrics()
    hit = asyncio.run(_hit(metrics, calls))
    if metrics.resolves["cache"] < calls:
        raise Failed(f"only {metrics.resolves['cache']} of {calls} were hits")
    library = Counter("hits", "The same, by the library.", ["source"], registry=CollectorRegistry())
    figures = {
        "a hit, without HTTP": hit,
        "counting it": _counting(metrics, calls),
        "counting it by prometheus_client": _each(library.labels("cache").inc, calls),
        "reading /metrics": _each(lambda: metrics.exposition(""), reads),
    }
    for case, seconds in figures.items():
        results.add("counting", case, None, call_us=seconds * 1e6)


async def _hit(metrics: Metrics, calls: int) -> float:
    """Return how many seconds one takes."""

    async def answer(token: bytes, caller: Caller, user_id: str | None = None) -> Owner:  # noqa: ARG001
        return Owner("@alice:example.org")

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_message: Message) -> None:
        pass

    resolver = remembering(metrics.timed(answer), 1)
    metrics.watch(resolver, list)
    app = Application(resolver, metrics, Starlette(), Settings())
    await app(_SCOPE, receive, send)
    start = time.perf_counter()
    for _ in range(calls):
        await app(_SCOPE, receive, send)
    return (time.perf_counter() - start) / calls


def _counting(metrics: Metrics, calls: int) -> float:
    """Return how many seconds the line of app.py takes, less those of the loop around it."""

    class Counting:
        resolves = metrics.resolves

        def __call__(self) -> None:
            self.resolves["cache"] += 1

        def nothing(self) -> None:
            pass

    counting = Counting()
    return _each(counting, calls) - _each(counting.nothing, calls)


def _each(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls
