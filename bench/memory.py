"""Memory: what each remembered token takes, in the router and in the edge cache."""

import asyncio
import gc
import math
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

from bench.measure import Failed, children, send
from bench.results import Results
from bench.sites import CONTENDERS, Site
from bench.standins import Standins
from tests.deployment.flood import flood
from tests.stack.router import Router
from whoami_router.resolver import Lookup, Resolver
from whoami_router.whoami import Caller, Owner

_CONNECTIONS = 8
_WARMING = 10_000

_SYNC = """
local sent = 0
function request()
    sent = sent + 1
    return "GET /_matrix/client/v3/sync?since=s1_2_3&timeout=30000 HTTP/1.1\\r\\n"
        .. "Host: matrix.example.org\\r\\n"
        .. "Authorization: Bearer syt_{user}" .. sent .. "_aBcDeFgHiJkLmNoPqRsT_a1b2c3\\r\\n\\r\\n"
end
"""


def measure(results: Results, *, tokens: int = 100_000, at_edge: int = 10_000) -> None:
    """Measure one run, with processes of its own, for so many tokens in the router and in nginx.

    Raises Failed if what should be remembered is not.
    """
    # In memory, where the edge cache belongs; nginx's worker may run as another user.
    with tempfile.TemporaryDirectory(prefix="whoami-router-bench-", dir="/dev/shm") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with Standins(directory) as standins:
            resident = _router(directory, standins, tokens)
            results.add("memory", "router", tokens, bytes_per_token=resident)
            allocated = asyncio.run(_allocated(tokens))
            results.add("memory", "router, allocated", tokens, bytes_per_token=allocated)
            files, nginx = _edge_cache(directory, standins, at_edge)
            figures = {"bytes_per_token": files, "nginx_bytes_per_token": nginx}
            results.add("memory", "edge cache", at_edge, **figures)


def _router(directory: Path, standins: Standins, count: int) -> float:
    """Return what a token takes of a router's resident memory."""
    path = directory / "router.sock"
    options = ("--cache-size", str(count), "--rejected-size", "1")
    with Router(directory, f"http://{standins.whoami}", *options, listen=f"unix:{path}") as router:
        # Whatever a lookup needs for a moment, it has from here on. Nothing is remembered: these
        # are not Synapse's, and there is room for one that is rejected.
        _ask(path, (f"unknown-{number}" for number in range(_WARMING)), "rejected", _WARMING)
        before = _resident([router.pid])
        _ask(path, _tokens(count), "whoami", count)
        return (_resident([router.pid]) - before) / count


def _ask(path: Path, tokens: Iterable[str], source: str, count: int) -> None:
    sources = flood(str(path), tokens, connections=_CONNECTIONS)
    if sources != {source: count}:
        raise Failed(f"instead of {count} times {source}: {dict(sources)}")


def remembering(lookup: Lookup, tokens: int) -> Resolver:
    """Return a resolver that remembers so many tokens for ever, and asks one after the other."""
    return Resolver(
        lookup,
        cache_size=tokens,
        cache_ttl=math.inf,
        stale_ttl=0,
        rejected_size=1,
        rejected_ttl=0,
        max_lookups=1,
        decode_native_tokens=False,
        clock=time.monotonic,
    )


async def _allocated(count: int) -> float:
    """Return how much memory a resolver asks Python for, for a token."""

    async def answer(token: bytes, caller: Caller, user_id: str | None = None) -> Owner:  # noqa: ARG001
        return Owner(f"@{token.split(b'_')[1].decode()}:example.org")

    resolver = remembering(answer, count)
    caller = Caller()
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for token in _tokens(count):
            await resolver.resolve(token.encode(), caller)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()


def _edge_cache(directory: Path, standins: Standins, count: int) -> tuple[float, float]:
    """Return what a token takes in files, and what in nginx's processes."""
    contender = next(contender for contender in CONTENDERS if contender.edge)
    site_directory = directory / "site"
    with (
        Router(directory, f"http://{standins.whoami}") as router,
        Site(
            site_directory,
            contender,
            asked=router.address,
            whoami=standins.whoami,
            workers=standins.workers,
        ) as site,
    ):
        # nginx reserves some memory for each connection, and keeps it.
        _sync(site.url, "alice", 50 * _CONNECTIONS)
        processes = [site.pid, *children(site.pid)]
        files, resident = _allocated_blocks(site.edge), _resident(processes)
        _sync(site.url, "bob", count)
        kept = sum(path.is_file() for path in site.edge.rglob("*"))
        if kept < count:
            raise Failed(f"the edge cache holds {kept} answers, not {count}")
        return (
            (_allocated_blocks(site.edge) - files) / count,
            (_resident(processes) - resident) / count,
        )


def _sync(url: str, user: str, count: int) -> None:
    # wrk drops the first request, and the last answers overtake others.
    count += 2 * _CONNECTIONS
    send(url, _SYNC.format(user=user), count=count, connections=_CONNECTIONS, seconds=300)


def _tokens(count: int) -> Iterable[str]:
    """Return tokens that look like Synapse's, each of another user."""
    return (f"syt_user{number}_aBcDeFgHiJkLmNoPqRsT_a1b2c3" for number in range(count))


def _resident(pids: Iterable[int]) -> int:
    """Return how many bytes of memory processes have; what several share is counted once."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def _allocated_blocks(directory: Path) -> int:
    """Return how many bytes the files in a directory take, as du counts them."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*"))


if __name__ == "__main__":
    measured = Results()
    measure(measured)
    for series in measured:
        print(series.part, series.case, series.at, series.figure, round(series.median, 1))
