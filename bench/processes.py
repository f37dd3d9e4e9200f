"""Processes: what a second router process gains, with nginx as shipped and nothing pinned."""

import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.hits import AT_RANDOM, CONNECTIONS, IN_TURN, RESOLVE, ROUNDS, script, tokens_of_synapse
from bench.measure import CPUS, Failed, Load, cpu_seconds, send, wrk
from bench.results import Results
from bench.standins import NGINX, Standins
from tests.stack.nginx import Nginx
from tests.stack.router import Router

CASES = {"one process": 1, "two processes": 2}
"""How many router processes nginx has to ask."""

_TOKENS = 1_000
_IDLE = 0.1  # of an even share: a process that does less has nothing to answer


def measure(results: Results, *, seconds: float, repeats: int = 2) -> None:
    """Measure one run, with processes of its own; each load takes so many (whole) seconds.

    A value is the median of the repeats, in which the cases take turns. Raises Failed if a token
    is not known, or a process is not asked.
    """
    figures: dict[str, list[dict[str, float]]] = {}
    with started() as cases:
        for _ in range(repeats):
            for name, routed in cases.items():
                load, used = routed.load(seconds)
                if min(used) < _IDLE * statistics.mean(used):
                    raise Failed(f"{name}: one of them has nothing to do")
                figures.setdefault(f"{name}, through nginx", []).append(_figures([load], used))
                loads, used = routed.load_directly(seconds)
                figures.setdefault(f"{name}, asked directly", []).append(_figures(loads, used))
    for name, all_of_it in figures.items():
        medians = {
            figure: statistics.median(each[figure] for each in all_of_it) for figure in all_of_it[0]
        }
        results.add("processes", name, None, **medians)


def _figures(loads: list[Load], used: list[float]) -> dict[str, float]:
    return {
        "rate": sum(load.rate for load in loads),
        "p50_ms": max(load.p50_ms for load in loads),
        "p99_ms": max(load.p99_ms for load in loads),
        "router_us": sum(used) / sum(load.requests for load in loads) * 1e6,
    }


@dataclass
class Routed:
    """An nginx, and the router processes that it asks."""

    url: str
    routers: list[Router]
    standins: Standins
    tokens: Path
    _sent: int = 0

    def warm(self) -> None:
        """Have each token known to the process that is asked about it; raise Failed if not."""
        # Some more than there are: wrk drops the first one, and the last answers overtake others.
        count = _TOKENS + 2 * CONNECTIONS
        words = script(self.tokens, 0, _TOKENS, start=0, order=IN_TURN)
        asked = 0
        for _ in range(ROUNDS):
            before = self.standins.asked()
            send(self.url, words, count=count, connections=CONNECTIONS, seconds=60)
            news = self.standins.asked() - before
            asked += news
            if not news and asked >= _TOKENS:
                return
        raise Failed(f"{len(self.routers)} router processes do not remember {_TOKENS} tokens")

    def load(self, seconds: float) -> tuple[Load, list[float]]:
        """Return what wrk measured, and the CPU seconds of each router process meanwhile."""
        words = script(self.tokens, 0, _TOKENS, start=self._sent, order=AT_RANDOM)
        asked, before = self.standins.asked(), self._cpu_seconds()
        load = wrk(self.url, words, connections=CONNECTIONS, seconds=seconds, cpus=CPUS)
        used = [now - then for now, then in zip(self._cpu_seconds(), before, strict=True)]
        asked = self.standins.asked() - asked
        if load.failed or asked:
            raise Failed(f"{load.failed} requests failed, {asked} tokens were not known")
        # The next load sends them in another order.
        self._sent += load.requests
        return load, used

    def load_directly(self, seconds: float) -> tuple[list[Load], list[float]]:
        """Return the same without nginx: a wrk for each process, all at the same time."""
        # Each process gets to know all tokens: which of them it is asked about makes no difference.
        for router in self.routers:
            self._ask(router, seconds=1)
        before = self._cpu_seconds()
        with ThreadPoolExecutor() as threads:
            loads = list(threads.map(lambda router: self._ask(router, seconds), self.routers))
        used = [now - then for now, then in zip(self._cpu_seconds(), before, strict=True)]
        if any(load.failed for load in loads):
            raise Failed("a router that was asked directly failed requests")
        return loads, used

    def _ask(self, router: Router, seconds: float) -> Load:
        words = script(self.tokens, 0, _TOKENS, start=0, order=AT_RANDOM, request=RESOLVE)
        url = f"http://{router.address}"
        connections = CONNECTIONS // len(self.routers)
        return wrk(url, words, connections=connections, seconds=seconds, cpus=CPUS)

    def _cpu_seconds(self) -> list[float]:
        return [cpu_seconds([router.pid]) for router in self.routers]


@contextmanager
def started() -> Iterator[dict[str, Routed]]:
    """Start each case, with router processes of its own that know all tokens."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="whoami-router-bench-"))
        )
        directory.chmod(0o755)  # nginx's workers may run as another user
        tokens = directory / "tokens"
        tokens.write_text("".join(f"{token}\n" for token in tokens_of_synapse(_TOKENS)))
        standins = stack.enter_context(Standins(directory))
        cases = {}
        for name, count in CASES.items():
            place = directory / name.replace(" ", "-")
            routers = []
            for number in range(count):
                router_place = place / f"router-{number}"
                router_place.mkdir(parents=True)
                router = Router(router_place, f"http://{standins.whoami}")
                routers.append(stack.enter_context(router))
            upstreams = {
                "whoami_router": [router.address for router in routers],
                "synapse_main": standins.workers,
                "synapse_sync": standins.workers,
                "synapse_initial_sync": standins.workers,
            }
            nginx = stack.enter_context(Nginx(place, upstreams, program=NGINX))
            cases[name] = Routed(nginx.url, routers, standins, tokens)
            cases[name].warm()
        yield cases
