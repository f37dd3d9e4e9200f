"""One URL at which Synapse can be asked, and whether it is worth asking."""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from whoami_router import answers
from whoami_router.answers import Failed, NoAnswer, Owner, TokenUnanswerable, WhoamiUnavailable
from whoami_router.backoff import Backoff

logger = logging.getLogger(__name__)

_PATH = "/_matrix/client/v3/account/whoami"

# Twisted, under Synapse, closes a connection that was idle for 60 s. Ours are gone before.
_KEEPALIVE_SECONDS = 30

# For so many seconds it counts whether Synapse was well.
_WELL_SECONDS = 1.0

# If for so many seconds nobody had a token to ask about, a server that is away is asked without
# one. So often is looked whether that is so.
_UNASKED_SECONDS = 5.0
_LOOK_SECONDS = 1.0

# A server that comes and goes is a line when it goes and one when it is back, in so many seconds.
_LOG_INTERVAL = 60.0

# Compression is not asked for: no small answer can unpack into a large one.
_HEADERS = {b"user-agent": b"whoami-router", b"accept": b"*/*", b"accept-encoding": b"identity"}


@dataclass(frozen=True, slots=True, repr=False)  # the headers hold a token
class Request:
    """What is asked, besides where: headers with a token, or without one, and a query."""

    headers: dict[bytes, bytes]
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServerState:
    """One URL: whether it is left alone now, and how many times that has begun."""

    url: str
    away: bool
    losses: int


class Server:
    """One URL at which Synapse can be asked, and whether it is worth asking."""

    def __init__(
        self,
        url: str,
        transport: httpx.AsyncBaseTransport,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self.backoff = Backoff(clock=clock)
        self.reason = ""
        self.losses = 0
        self.url = url
        self._clock = clock
        self._closed = False
        self._timeout = timeout
        self._examination: asyncio.Task[WhoamiUnavailable | None] | None = None
        self._examined_until = -math.inf
        self._look: asyncio.TimerHandle | None = None
        self._probe: asyncio.Task[None] | None = None
        self._said_away = False
        self._said_losses = 0
        self._silent_until = -math.inf
        self._transport = transport
        self._whoami = httpx.URL(("http://localhost" if url.startswith("unix:") else url) + _PATH)

    async def ask(self, request: Request, *, timeout: float) -> Owner | None:  # noqa: ASYNC109
        """Return whom Synapse names, and note whether it did; raises WhoamiUnavailable."""
        mark = self.backoff.mark
        deadline = time.monotonic() + timeout
        try:
            async with self._in_time(timeout):
                owner = await self._get(request)
        except Failed as exc:
            failure = exc
        except WhoamiUnavailable as exc:
            self._note_failure(mark, exc)
            raise
        else:
            self._note_answer(mark)
            return owner

        # Some tokens make Synapse answer 500 (1.163 does to MDAx), and it hangs up on headers
        # that are too long. Were that a sign that it is away, whoever sends such requests could
        # keep everybody from being looked up.
        examination = self._examine(anew=isinstance(failure, NoAnswer))
        if not examination.done():
            # However long that takes, this caller waits no longer than it would have anyway.
            await asyncio.wait({examination}, timeout=max(0, deadline - time.monotonic()))
        if not examination.done():
            examination.add_done_callback(lambda _: self._note_examined(examination, mark, failure))
            raise failure
        if self._note_examined(examination, mark, failure):
            raise TokenUnanswerable(str(failure)) from failure
        raise failure

    async def check(self, *, timeout: float) -> None:  # noqa: ASYNC109
        """Return if Synapse says that there is no token; raises WhoamiUnavailable if not."""
        async with self._in_time(timeout):
            await self._get(Request({}, {}))

    def _examine(self, *, anew: bool) -> asyncio.Task[WhoamiUnavailable | None]:
        """Return whether Synapse is well, shared by all who want to know: None, or why not.

        If it is, it says of a request without a token that there is none. What was found counts
        for a moment, unless it has to be found out ``anew``.
        """

        async def find_out() -> WhoamiUnavailable | None:
            found = None
            try:
                await self.check(timeout=self._timeout)
            except WhoamiUnavailable as exc:
                found = exc
            self._examined_until = self._clock() + _WELL_SECONDS
            return found

        last = self._examination
        if last is not None and not last.done():
            return last
        if last is None or anew or self._clock() >= self._examined_until:
            last = self._examination = asyncio.create_task(find_out())
        return last

    def _note_examined(
        self,
        examination: asyncio.Task[WhoamiUnavailable | None],
        mark: int,
        failure: WhoamiUnavailable,
    ) -> bool:
        """Note what a failure was due to; return whether to what was asked."""
        if examination.cancelled():
            return False  # by ourselves, at the end
        found = examination.result()
        if found is None:
            self._note_answer(mark)
            return True
        failure.retry_after = found.retry_after
        self._note_failure(mark, failure)
        return False

    def _note_answer(self, mark: int) -> None:
        self.backoff.succeeded(mark)
        if self._said_away and not self.backoff.away:
            self._said_away = False
            logger.warning("Synapse can be asked again", extra={"url": self.url})

    def _note_failure(self, mark: int, exc: WhoamiUnavailable) -> None:
        if self._closed:
            return  # by ourselves
        was_away = self.backoff.away
        self.reason = str(exc)
        self.backoff.failed(mark, retry_after=exc.retry_after)
        if not self.backoff.away:
            return
        if not was_away:
            self.losses += 1
        if not self._said_away and self._clock() >= self._silent_until:
            self._said_away = True
            self._silent_until = self._clock() + _LOG_INTERVAL
            times, self._said_losses = self.losses - self._said_losses, self.losses
            logger.warning(
                "Synapse cannot be asked, and is left alone for a while",
                extra={"url": self.url, "reason": str(exc), "times": times},
            )
        if self._look is None:
            self._look_later()

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_after)

    def _look_after(self) -> None:
        """See to it that a server that is away is asked, also when all that come are known."""
        self._look = None
        if self._closed or not self.backoff.away:
            return
        # Not earlier: an answer to a token says more. Synapse can say that there is none while
        # what it asks itself about tokens is away.
        if self.backoff.unasked_for >= _UNASKED_SECONDS and self.backoff.start_probe():
            self._probe = asyncio.create_task(self._probe_without_token())
        self._look_later()

    async def _probe_without_token(self) -> None:
        mark = self.backoff.mark
        try:
            await self.check(timeout=self._timeout)
        except WhoamiUnavailable as exc:
            self._note_failure(mark, exc)
        else:
            self._note_answer(mark)

    @asynccontextmanager
    async def _in_time(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as exc:
            raise WhoamiUnavailable(f"{self.url} did not answer in time") from exc

    async def _get(self, request: Request) -> Owner | None:
        url = self._whoami.copy_merge_params(request.params) if request.params else self._whoami
        try:
            # Straight to the transport. What a client of httpx's would do on the way takes half of
            # a lookup's time, and is not wanted: no cookie of one answer may travel with another
            # user's token, and no redirect is followed with one.
            response = await self._transport.handle_async_request(
                httpx.Request("GET", url, headers=_HEADERS | request.headers)
            )
            try:
                return await answers.read(response)
            finally:
                await response.aclose()
        except WhoamiUnavailable as exc:
            raise type(exc)(f"{self.url} {exc}", retry_after=exc.retry_after) from exc
        # Whatever it is: httpx-aiohttp lets some of aiohttp's own errors through, and a probe has
        # to report in any case.
        except Exception as exc:  # noqa: BLE001
            reason = _describe(exc)
        # Out here, without a cause: what aiohttp raises holds the request, and with it the token.
        raise NoAnswer(f"{self.url} failed to answer ({reason})")

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        for pending in (self._examination, self._look, self._probe):
            if pending is not None:
                pending.cancel()
        await self._transport.aclose()


def _describe(exc: Exception) -> str:
    # httpx-aiohttp calls a refused connection a ConnectTimeout; its cause says what happened.
    cause = exc.__cause__ or exc
    if isinstance(cause, aiohttp.ClientConnectorError):
        number = cause.os_error.errno or 0
        # A name that cannot be resolved has a number of its own, below zero.
        return os.strerror(number) if number > 0 else str(cause.os_error.strerror)
    return type(cause).__name__  # and not its text, which may quote what Synapse sent


def pooled_transport(url: str) -> httpx.AsyncBaseTransport:
    """Return a transport over aiohttp: httpx's own costs several times the CPU per lookup."""
    path = url.removeprefix("unix:") if url.startswith("unix:") else None

    def session() -> aiohttp.ClientSession:  # called in the event loop, at the first request
        # No limit: the resolver bounds how many lookups run, and one that waited here for a
        # connection would use up its time without asking.
        connector = (
            aiohttp.UnixConnector(path, limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
            if path
            else aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(client=session)
