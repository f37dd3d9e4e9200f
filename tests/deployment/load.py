"""Clients that sync all the time, and what becomes of each of their requests."""

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import aiohttp

from tests.soak import SOAK
from tests.stack.matrix import Device

_SYNC = "/_matrix/client/v3/sync"
_SLIDING_SYNC = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
_WINDOW = {"lists": {"all": {"ranges": [[0, 9]], "required_state": [], "timeline_limit": 1}}}

# One request of so many is a sliding sync.
_SLIDING = 10


@dataclass(frozen=True, slots=True)
class Request:
    """One request and its response; without one, the status is None and ``error`` says why."""

    device: Device
    sliding: bool
    start: float
    duration: float
    status: int | None
    identifier: str | None = None
    source: str | None = None
    worker: str | None = None
    error: str = ""


class Requests(Sequence[Request]):
    """Requests in the order in which they ended. Times are those of ``time.monotonic``."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = tuple(requests)

    def __getitem__(self, index):
        return self._requests[index]

    def __len__(self) -> int:
        return len(self._requests)

    def __repr__(self) -> str:
        return f"<{self.total} requests, {len(self.failed)} failed, slowest {self.slowest:.3f} s>"

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self)

    @property
    def failed(self) -> list[Request]:
        """Those that did not end in a 200."""
        return [request for request in self if request.status != 200]

    @property
    def slowest(self) -> float:
        """How long the slowest took, in seconds."""
        return max((request.duration for request in self), default=0.0)

    @property
    def sources(self) -> set[str | None]:
        """Where their identifiers came from; None for requests that had none."""
        return {request.source for request in self}

    @property
    def scattered(self) -> set[str | None]:
        """Whose requests reached more than one worker of a pool."""
        workers = defaultdict(set)
        for request in self:
            workers[request.identifier, request.sliding].add(request.worker)
        return {identifier for (identifier, _), used in workers.items() if len(used) > 1}

    def quantile(self, q: float) -> float:
        """Return within how many seconds this share of the requests was answered."""
        if not self:
            return 0.0
        durations = sorted(request.duration for request in self)
        return durations[max(0, math.ceil(q * len(durations)) - 1)]

    def where(self, condition: Callable[[Request], object]) -> Self:
        """Return those for which the condition holds."""
        return type(self)(request for request in self if condition(request))

    def between(self, start: float, end: float = math.inf) -> Self:
        """Return those that started between two times."""
        return self.where(lambda request: start <= request.start < end)


class Load:
    """Syncs with each of the devices in turn, ``rate`` of them a second, through ``url``.

    A request starts when it is due, however long others take: nobody waits for whoever is slow.
    A context manager, with a thread of its own: leaving it starts no more requests and returns
    when all have ended. It ends by itself with the devices, or after ``seconds``.
    """

    def __init__(
        self,
        url: str,
        devices: Iterable[Device],
        *,
        since: str,
        rate: float,
        seconds: float = 120 * SOAK,
    ) -> None:
        self._url = url
        self._devices = devices
        self._since = since
        self._pause = 1 / rate
        self._seconds = seconds
        self._done: list[Request] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether requests are still being sent or answered."""
        return self._thread.is_alive()

    @property
    def results(self) -> Requests:
        """The requests that have ended until now."""
        return Requests(self._done)

    async def _run(self) -> None:
        async with (
            aiohttp.ClientSession(
                self._url,
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(60),
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            asyncio.TaskGroup() as requests,
        ):
            # (!) Or a connection that was dropped under a request would not be seen as a failure.
            session._retry_connection = False
            start = time.monotonic()
            for number, device in enumerate(self._devices):
                due = start + number * self._pause
                await asyncio.sleep(due - time.monotonic())
                if self._stopping.is_set() or due > start + self._seconds:
                    break
                sliding = number % _SLIDING == _SLIDING - 1
                requests.create_task(self._sync(session, device, sliding=sliding))

    async def _sync(self, session: aiohttp.ClientSession, device: Device, *, sliding: bool) -> None:
        params, headers = {"timeout": "0"}, {}
        if device.token_in_query:
            params["access_token"] = device.token
        else:
            headers["Authorization"] = f"Bearer {device.token}"
        if sliding:
            method, path, body = "POST", _SLIDING_SYNC, _WINDOW
        else:
            method, path, body = "GET", _SYNC, None
            params["since"] = self._since
        start = time.monotonic()
        try:
            async with session.request(
                method, path, params=params, headers=headers, json=body
            ) as response:
                await response.read()
                duration = time.monotonic() - start
                answer = response.headers
        except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
            duration = time.monotonic() - start
            self._done.append(Request(device, sliding, start, duration, None, error=repr(exc)))
            return
        self._done.append(
            Request(
                device,
                sliding,
                start,
                duration,
                response.status,
                answer.get("x-user-identifier"),
                answer.get("x-user-identifier-source"),
                answer.get("x-upstream-address"),
            )
        )
