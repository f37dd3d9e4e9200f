"""Misses: what a lookup costs, and what many lookups at once cost everybody else."""

import secrets
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.measure import CPUS, Failed, Load, children, cpu_seconds, pin, wrk
from bench.results import Results
from bench.standins import Standins
from tests.stack.deployment import Deployment, deployed
from tests.stack.matrix import Matrix
from tests.stack.process import Process, wait_until
from tests.stack.router import Router

AT_ONCE = (1, 8, 32, 64)
"""How many lookups at once."""

# A token that is new to the router is new to Synapse's main process, too. As it remembers 500 of
# them, so many in turn have been forgotten each time they come again.
_USERS, _DEVICES = 100, 7

# More than a load has: the last lookups of the load before may still be under way.
_ROOM = ("--max-lookups", "256")

# The share of answers that may have another source: Synapse fails a request now and then.
_OTHERS = 1 / 500

# Beyond what a machine that does much else needs: a lookup that is given up is none.
_PATIENCE = ("--whoami-timeout", "10")

# 32 connections, as many as nginx keeps: either busy all the time, or with pauses of 30 ms or so.
# The latter are about a thousand requests a second, of 30,000 clients that ask every 30 seconds.
# The pauses are random and long beside an answer, so requests come as they do from many clients,
# hardly held up by those before.
_HIT_CONNECTIONS = 32
_PAUSES_MS = {"hits": 0, "paced hits": 30}
_REMEMBERED = 1_000
_STORM = 64
_SPARE = 4  # seconds that a storm begins before the hits and lasts beyond them

_NEVER_SEEN = """
local sent = 0
local function token()
    sent = sent + 1
    return "syt_user" .. sent .. "_{load}_a1b2c3"
end
"""
_FROM_FILE = """
local tokens, sent = {{}}, {start}
for each in io.lines("{path}") do tokens[#tokens + 1] = each end
local function token()
    sent = sent + 1
    return tokens[sent % #tokens + 1]
end
"""
# What nginx sends to the router. Whatever is answered that should not be is noted in a file, a
# byte each: in the end wrk knows only statuses.
_RESOLVE = """
function request()
    return "GET /resolve HTTP/1.1\\r\\nHost: whoami_router\\r\\n"
        .. "Authorization: Bearer " .. token() .. "\\r\\n"
        .. "X-Original-URI: /_matrix/client/v3/sync?since=s72_85_11_52_8_77_4_9&timeout=30000\\r\\n"
        .. "X-Forwarded-For: 192.0.2.7\\r\\n"
        .. "User-Agent: Element/1.11.86 (Linux; Android 14; Pixel 8; MatrixRustSdk 0.9.0)\\r\\n"
        .. "\\r\\n"
end
local others = io.open("{others}", "a")
function response(status, headers)
    if headers["x-user-identifier-source"] ~= "{source}" then
        others:write(".")
        others:flush()
    end
end
"""
# What the router sends to Synapse.
_WHOAMI = """
function request()
    return "GET /_matrix/client/v3/account/whoami HTTP/1.1\\r\\nHost: synapse\\r\\n"
        .. "Authorization: Bearer " .. token() .. "\\r\\n"
        .. "X-Forwarded-For: 192.0.2.7\\r\\nX-Forwarded-Proto: https\\r\\n"
        .. "User-Agent: Element/1.11.86 (Linux; Android 14; Pixel 8; MatrixRustSdk 0.9.0)\\r\\n"
        .. "\\r\\n"
end
"""
_PAUSE = """
math.randomseed(1)
function delay() return math.random(0, 2 * {pause}) end
"""


def measure(
    results: Results, *, seconds: float, synapse: Deployment | None = None, repeats: int = 3
) -> None:
    """Measure one run; each load takes so many (whole) seconds.

    Without a ``synapse`` there is only the stand-in. Raises Failed if what should have been
    lookups were none, or failed.
    """
    with tempfile.TemporaryDirectory(prefix="whoami-router-bench-", dir="/tmp") as name:
        directory = Path(name)
        with Standins(directory) as standins:
            pin([standins.pid, *children(standins.pid)], CPUS[1:] or CPUS)
            url = f"http://{standins.whoami}"
            with _routing(directory, url, *_ROOM) as asked:
                _measure_lookups(results, asked, "stand-in", lambda _: _never_seen(), seconds)
            with _routing(directory, url) as asked:
                _measure_storm(results, asked, "", "whoami", seconds=seconds, repeats=repeats)
        if synapse is not None:
            _measure_synapse(results, directory, synapse, seconds=seconds, repeats=repeats)


def _measure_synapse(
    results: Results, directory: Path, synapse: Deployment, *, seconds: float, repeats: int
) -> None:
    tokens = directory / "tokens"
    tokens.write_text("".join(f"{token}\n" for token in _valid_tokens(synapse)))

    def valid(start: int = 0) -> str:
        return _FROM_FILE.format(path=tokens, start=start)

    others = [synapse.postgres, *synapse.workers.values()]
    address = synapse.main.addresses[0]
    url = f"http://{address}"
    with _pinned([*others, synapse.nginx, synapse.router], CPUS[1:] or CPUS):
        with _pinned([synapse.main], CPUS[:1]):
            for at in AT_ONCE:
                load = wrk(url, valid() + _WHOAMI, connections=at, seconds=seconds)
                if load.failed:
                    raise Failed(f"Synapse: {load.failed} requests failed")
                results.add("misses", "whoami of Synapse", at, **_figures(load))
        with _pinned([synapse.main], CPUS[1:] or CPUS):
            # With room for one answer the router has forgotten each token when it comes again.
            with _routing(directory, url, *_ROOM, "--cache-size", "1") as asked:
                _measure_lookups(results, asked, "Synapse", valid, seconds)
            with _routing(directory, url) as asked:
                # Synapse knows no token of a storm, but it has to be asked about each.
                _measure_storm(
                    results,
                    asked,
                    " on Synapse",
                    "rejected",
                    known=tokens,
                    seconds=seconds,
                    repeats=repeats,
                )


def _measure_lookups(
    results: Results, asked: "_Asked", case: str, tokens: Callable[[int], str], seconds: float
) -> None:
    """Measure requests of which each is a lookup; ``tokens`` go on after so many."""
    sent = 0
    for at in AT_ONCE:
        before = cpu_seconds([asked.router.pid])
        load = asked.load(tokens(sent), "whoami", connections=at, seconds=seconds)
        used = cpu_seconds([asked.router.pid]) - before
        lookup_us = used / load.requests * 1e6
        # Beyond those whose answers nobody waited for, and one that wrk drops.
        sent += load.requests + 2 * at
        results.add("misses", case, at, lookup_us=lookup_us, **_figures(load))


def _measure_storm(
    results: Results,
    asked: "_Asked",
    where: str,
    source: str,
    *,
    known: Path | None = None,
    seconds: float,
    repeats: int,
) -> None:
    """Measure hits alone and during a storm, in turns; a figure is the median of the repeats.

    A storm is 64 at once who send tokens that were never seen, as fast as these are answered.
    """
    if known is None:
        known = asked.directory / "remembered"
        known.write_text("".join(f"syt_bob{i}_remembered_a1b2c3\n" for i in range(_REMEMBERED)))
    asked.remember(known)
    loads: dict[str, list[Load]] = {}
    for _ in range(repeats):
        for hits, pause in _PAUSES_MS.items():
            script = _FROM_FILE.format(path=known, start=0) + _PAUSE.format(pause=pause)
            alone = asked.load(script, "cache", connections=_HIT_CONNECTIONS, seconds=seconds)
            with asked.storm(source, seconds=seconds + _SPARE) as storm:
                during = asked.load(script, "cache", connections=_HIT_CONNECTIONS, seconds=seconds)
                if storm.done():
                    raise Failed("the storm was over too early")
            cases = {
                f"{hits} alone": alone,
                f"{hits} during a storm": during,
                f"the storm, with {hits}": storm.result(),
            }
            for case, load in cases.items():
                loads.setdefault(case + where, []).append(load)
    for case, each in loads.items():
        figures = [_figures(load) for load in each]
        medians = {name: statistics.median(each[name] for each in figures) for name in figures[0]}
        results.add("storm", case, None, **medians)


@dataclass
class _Asked:
    """A router that is asked directly."""

    router: Router
    directory: Path

    @property
    def _url(self) -> str:
        return f"http://{self.router.address}/resolve"

    def load(self, tokens: str, source: str, *, connections: int, seconds: float) -> Load:
        """Ask about tokens; raise Failed unless the identifiers come from this source."""
        with tempfile.NamedTemporaryFile(dir=self.directory) as others:
            script = tokens + _RESOLVE.format(others=others.name, source=source)
            load = wrk(self._url, script, connections=connections, seconds=seconds)
            count = len(others.read())
        if load.failed or count > load.requests * _OTHERS:
            raise Failed(
                f"of {load.requests} requests {load.failed} failed, {count} were not {source}"
            )
        return load

    def remember(self, tokens: Path) -> None:
        """Ask about each of these tokens once."""
        with httpx.Client(trust_env=False) as client:
            for token in tokens.read_text().split():
                client.get(self._url, headers={"authorization": f"Bearer {token}"})

    @contextmanager
    def storm(self, source: str, *, seconds: float) -> Iterator[Future[Load]]:
        """Have new tokens sent meanwhile; yield once they are, wait for the end afterwards."""
        with ThreadPoolExecutor() as threads:
            idle = cpu_seconds([self.router.pid])
            storm = threads.submit(
                self.load, _never_seen(), source, connections=_STORM, seconds=seconds
            )
            # A tenth of a second of work: it has begun.
            wait_until(
                lambda: storm.done() or cpu_seconds([self.router.pid]) > idle + 0.1, "a storm"
            )
            yield storm
        storm.result()


@contextmanager
def _routing(directory: Path, synapse_url: str, *options: str) -> Iterator[_Asked]:
    """Start a router, on a processor of its own."""
    with Router(directory, synapse_url, *_PATIENCE, *options) as router:
        pin([router.pid], CPUS[:1])
        yield _Asked(router, directory)


@contextmanager
def _pinned(processes: list[Process], cpus: list[int]) -> Iterator[None]:
    """Keep processes and their children on these processors until the context is left."""
    pids = [pid for process in processes for pid in (process.pid, *children(process.pid))]
    pin(pids, cpus)
    try:
        yield
    finally:
        pin(pids, CPUS)


def _never_seen() -> str:
    """Return Lua that makes tokens that nobody has seen."""
    return _NEVER_SEEN.format(load=secrets.token_hex(10))


def _valid_tokens(synapse: Deployment) -> list[str]:
    with Matrix(f"http://{synapse.main.addresses[0]}") as client:
        devices = []
        for _ in range(_USERS):
            name = f"bench-{secrets.token_hex(4)}"
            devices.append(client.register(name, secret=synapse.registration_secret))
            devices += [client.log_in(name) for _ in range(_DEVICES - 1)]
    return [device.token for device in devices]


def _figures(load: Load) -> dict[str, float]:
    return {"rate": load.rate, "p50_ms": load.p50_ms, "p99_ms": load.p99_ms}


if __name__ == "__main__":
    measured = Results()
    with deployed() as running:
        measure(measured, seconds=3, synapse=running)
    for series in measured:
        print(series.part, series.case, series.at or "", series.figure, round(series.median, 3))
