"""Hits: what it costs to find the user of a token that is known, beside other ways to find it."""

import base64
import random
import statistics
import string
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from bench.measure import CPUS, Failed, Load, children, cpu_seconds, pin, send, wrk
from bench.results import Results
from bench.sites import CONTENDERS, CannotRun, Constant, Contender, Site
from bench.standins import Standins
from tests.stack.process import Process
from tests.stack.router import Router

T = TypeVar("T")

SIZES = (1, 1_000, 20_000, 200_000)
"""How many tokens are in use."""

_DEVICES = 3  # tokens of each user
_ROUTED = 20 * _DEVICES  # tokens to see the routing by, besides those that are measured
CONNECTIONS = 32
ROUNDS = 5  # one to have all tokens looked up, one to see that they are known, some to spare
_REFRESHED = 20_000  # the most tokens that are asked about again before each load

# The tokens of lines first + 1 to last.
_TOKENS = """
local tokens, line = {{}}, 0
for token in io.lines("{path}") do
    line = line + 1
    if line > {last} then break end
    if line > {first} then tokens[#tokens + 1] = token end
end
"""
# As clients come, who wait for news each in their own time.
AT_RANDOM = """
math.randomseed({start} + 1)
local function token() return tokens[math.random(#tokens)] end
"""
# The worst order for whatever forgets the least recently used.
IN_TURN = """
local sent = {start}
local function token()
    sent = sent + 1
    return tokens[(sent - 1) % #tokens + 1]
end
"""
# With the headers that Element in a browser sends.
_CLIENT = """
function request()
    return "GET {sync} HTTP/1.1\\r\\n"
        .. "Host: matrix.example.org\\r\\n"
        .. "Accept: application/json\\r\\n"
        .. "Accept-Encoding: gzip, deflate, br, zstd\\r\\n"
        .. "Accept-Language: en-GB,en;q=0.9,de;q=0.8\\r\\n"
        .. "Origin: https://app.element.io\\r\\n"
        .. "Referer: https://app.element.io/\\r\\n"
        .. "Sec-Fetch-Dest: empty\\r\\n"
        .. "Sec-Fetch-Mode: cors\\r\\n"
        .. "Sec-Fetch-Site: cross-site\\r\\n"
        .. "User-Agent: {agent}\\r\\n"
        .. "Authorization: Bearer " .. token() .. "\\r\\n\\r\\n"
end
"""
# What nginx asks.
RESOLVE = """
function request()
    return "GET /resolve HTTP/1.1\\r\\n"
        .. "Host: whoami_router\\r\\n"
        .. "Authorization: Bearer " .. token() .. "\\r\\n"
        .. "X-Original-URI: {sync}\\r\\n"
        .. "X-Forwarded-For: 192.0.2.7\\r\\n"
        .. "User-Agent: {agent}\\r\\n\\r\\n"
end
"""
_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
_SYNC = "/_matrix/client/v3/sync?filter=1&since=s726592_8571043_1139_5288_77_4_912&timeout=30000"


def measure(
    results: Results, *, seconds: float, sizes: Sequence[int] = SIZES, repeats: int = 2
) -> None:
    """Measure one run, with processes of its own; each load takes so many (whole) seconds.

    A value is the median of the repeats, in which the contenders take turns: whatever else the
    machine does meets all of them. Raises Failed if a contender does not do what it is measured
    for.
    """
    with _started(results, max(sizes)) as entrants:
        for entrant in entrants:
            entrant.check_routing()
        known = 0
        for size in sizes:
            for entrant in entrants:
                entrant.warm(known, size)
            known = size
            loads: dict[str, list[dict[str, float]]] = {}
            for _ in range(repeats):
                for entrant in entrants:
                    name = entrant.contender.name
                    loads.setdefault(name, []).append(entrant.load(size, seconds))
                    if entrant.contender.edge and size > 1:
                        figures = entrant.load(size, seconds, order=IN_TURN)
                        loads.setdefault(f"{name}, in turn", []).append(figures)
            for name, each in loads.items():
                medians = {
                    figure: statistics.median(figures[figure] for figures in each)
                    for figure in each[0]
                }
                results.add("hits", name, size, **medians)
            _measure_directly(results, entrants, size, seconds, repeats)


def _measure_directly(
    results: Results, entrants: Sequence["_Entrant"], size: int, seconds: float, repeats: int
) -> None:
    """Measure what nginx asks, asked as nginx asks it, alone on its processor.

    Behind nginx it shares one with the load and Synapse's stand-ins, and a good part of its CPU
    time is theirs: caches that are cold each time it runs.
    """
    asked = [each for each in entrants if each.service is not None and not each.contender.edge]
    loads: dict[str, list[Load]] = {}
    used: dict[str, list[float]] = {}
    for _ in range(repeats):
        for entrant in asked:
            name = entrant.contender.name
            load, seconds_used = entrant.load_directly(size, seconds)
            loads.setdefault(name, []).append(load)
            used.setdefault(name, []).append(seconds_used / load.requests * 1e6)
    for name, each in loads.items():
        results.add(
            "service",
            name,
            size,
            rate=statistics.median(load.rate for load in each),
            p50_ms=statistics.median(load.p50_ms for load in each),
            p99_ms=statistics.median(load.p99_ms for load in each),
            router_us=statistics.median(used[name]),
        )


def script(
    tokens: Path, first: int, last: int, *, start: int, order: str, request: str = _CLIENT
) -> str:
    """Return wrk's script that sends the tokens of lines first + 1 to last of a file.

    ``order`` is AT_RANDOM or IN_TURN, ``start`` how many have been sent before.
    """
    return (_TOKENS + order + request).format(
        path=tokens, first=first, last=last, start=start, sync=_SYNC, agent=_AGENT
    )


@dataclass
class _Entrant:
    """A contender in one run. ``service`` is the process that it asks, besides Synapse's."""

    contender: Contender
    site: Site
    service: Process | None
    standins: Standins
    tokens: Path
    _sent: dict[int, int] = field(default_factory=dict)

    def check_routing(self) -> None:
        """Raise Failed unless requests are routed by user, or by token, as they should be."""
        with httpx.Client(base_url=self.site.url, trust_env=False) as client:
            workers = [
                client.get(_SYNC, headers={"authorization": f"Bearer {token}"}).json()["worker"]
                for token in self.tokens.read_text().splitlines()[:_ROUTED]
            ]
        users = [set(workers[i : i + _DEVICES]) for i in range(0, _ROUTED, _DEVICES)]
        by_user = all(len(each) == 1 for each in users)
        if by_user != self.contender.by_user:
            raise Failed(f"{self.contender.name} routes by {'user' if by_user else 'token'}")

    def warm(self, first: int, last: int) -> None:
        """Have these of the tokens known; raise Failed unless they are."""
        if not self.contender.remembers:
            return
        asked = 0
        for _ in range(ROUNDS):
            before = self.standins.asked()
            self._send(first, last)
            news = self.standins.asked() - before
            asked += news
            if not news and (self.contender.edge or asked >= last - first):
                break
        else:
            raise Failed(f"{self.contender.name} does not remember {last - first} tokens")
        if self.contender.edge:
            kept = sum(path.is_file() for path in self.site.edge.rglob("*"))
            if kept < min(last, _REFRESHED):
                raise Failed(f"the edge cache holds {kept} answers of {last}")

    def load(self, size: int, seconds: float, *, order: str = AT_RANDOM) -> dict[str, float]:
        """Return the figures of one load, with so many tokens."""
        # An answer at the edge is good for a minute. While others are measured all of them would
        # run out; in use they are asked for again one by one. Beyond what it holds it does not
        # matter.
        if self.contender.edge and size <= _REFRESHED:
            self._send(0, size)
        nginx, service = self.site.cpu_seconds(), self._service_seconds()
        load = self._expect_no_question(lambda: self._wrk(size, seconds, order))
        if load.failed:
            raise Failed(f"{self.contender.name}: {load.failed} requests failed")
        # The next load goes on where this one ended.
        self._sent[size] = self._sent.get(size, 0) + load.requests
        figures = {
            "rate": load.rate,
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
            "nginx_us": (self.site.cpu_seconds() - nginx) / load.requests * 1e6,
        }
        if self.service is not None:
            used = self._service_seconds() - service
            figures["router_us"] = used / load.requests * 1e6
        return figures

    def load_directly(self, size: int, seconds: float) -> tuple[Load, float]:
        """Return one load of the service itself, and its CPU seconds."""
        used = self._service_seconds()
        url = f"http://{self.service.address}"
        script = self._script(0, size, self._sent.get(size, 0), AT_RANDOM, RESOLVE)
        load = self._expect_no_question(
            lambda: wrk(url, script, connections=CONNECTIONS, seconds=seconds, cpus=CPUS[:1])
        )
        if load.failed:
            raise Failed(f"{self.contender.name}, asked directly: {load.failed} requests failed")
        self._sent[size] = self._sent.get(size, 0) + load.requests
        return load, self._service_seconds() - used

    def _wrk(self, size: int, seconds: float, order: str) -> Load:
        script = self._script(0, size, self._sent.get(size, 0), order)
        return wrk(self.site.url, script, connections=CONNECTIONS, seconds=seconds)

    def _send(self, first: int, last: int) -> None:
        # Some more than there are: wrk drops the first one, and the last answers overtake others.
        count = last - first + 2 * CONNECTIONS
        script = self._script(first, last, 0, IN_TURN)
        send(self.site.url, script, count=count, connections=CONNECTIONS, seconds=600)

    def _script(self, first: int, last: int, start: int, order: str, request: str = _CLIENT) -> str:
        first, last = _ROUTED + first, _ROUTED + last
        return script(self.tokens, first, last, start=start, order=order, request=request)

    def _expect_no_question(self, do: Callable[[], T]) -> T:
        before = self.standins.asked()
        done = do()
        asked = self.standins.asked() - before
        if asked:
            raise Failed(f"{self.contender.name} forgot {asked} tokens")
        return done

    def _service_seconds(self) -> float:
        return cpu_seconds([self.service.pid]) if self.service else 0


@contextmanager
def _started(results: Results, tokens: int) -> Iterator[list[_Entrant]]:
    """Start everything, and note in ``results`` what this nginx cannot do."""
    with ExitStack() as stack:
        # In memory, where the edge cache belongs; nginx's worker may run as another user.
        directory = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="whoami-router-bench-", dir="/dev/shm")
            )
        )
        directory.chmod(0o755)
        standins = stack.enter_context(Standins(directory))
        router = stack.enter_context(
            Router(directory, f"http://{standins.whoami}", "--cache-size", "300000")
        )
        constant = stack.enter_context(Constant(directory))
        pin([standins.pid, *children(standins.pid), router.pid, constant.pid], CPUS[1:] or CPUS)
        services = {"router": router, "constant": constant}
        addresses = {name: service.address for name, service in services.items()}
        path = directory / "tokens"
        path.write_text("".join(f"{token}\n" for token in tokens_of_synapse(_ROUTED + tokens)))
        entrants = []
        missing = results.machine.setdefault("missing", {})
        for contender in CONTENDERS:
            try:
                site = Site(
                    directory / contender.name.replace(" ", "-"),
                    contender,
                    asked=addresses.get(contender.asks, standins.whoami),
                    whoami=standins.whoami,
                    workers=standins.workers,
                )
            except CannotRun as exc:
                missing[contender.name] = str(exc)
                continue
            stack.enter_context(site)
            service = services.get(contender.asks)
            entrants.append(_Entrant(contender, site, service, standins, path))
        yield entrants


def tokens_of_synapse(count: int) -> Iterator[str]:
    """Return tokens as Synapse issues them, the same ones each time."""
    chosen = random.Random(0)
    for number in range(count):
        localpart = base64.b64encode(f"user{number // _DEVICES}".encode()).decode().rstrip("=")
        secret = "".join(chosen.choices(string.ascii_letters, k=20))
        checksum = "".join(chosen.choices(string.ascii_letters + string.digits, k=6))
        yield f"syt_{localpart}_{secret}_{checksum}"
