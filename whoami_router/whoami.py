"""Asks Synapse whose token it is: one GET of ``account/whoami``."""

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from whoami_router.backoff import Backoff

logger = logging.getLogger(__name__)

_PATH = "/_matrix/client/v3/account/whoami"

# An answer is about 100 bytes. Whatever listens there instead, this much of it is read.
_LONGEST_ANSWER = 64 * 1024

# Twisted, under Synapse, closes a connection that was idle for 60 s. Ours are gone before.
_KEEPALIVE_SECONDS = 30

# Statuses that are about the server and not about what it was asked: RFC 6585, section 4, and
# RFC 9110, section 15.6.
_AWAY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

# For so many seconds it counts whether Synapse was well.
_WELL_SECONDS = 1.0

# So much of a header of the client's is passed on. Twisted hangs up beyond 16 KiB a line.
_LONGEST_PASSED_ON = 1024

# Compression is not asked for: no small answer can unpack into a large one.
_HEADERS = {b"user-agent": b"whoami-router", b"accept": b"*/*", b"accept-encoding": b"identity"}

TransportFactory = Callable[[str], httpx.AsyncBaseTransport]
"""Makes the transport for one ``http://host:port`` or ``unix:/path``."""


class WhoamiUnavailable(Exception):  # noqa: N818  (the name says the consequence)
    """Synapse cannot be asked at the moment; says why, never with a token in it.

    ``retry_after`` is how many seconds it wants to be left alone, None if it did not say.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Failed(WhoamiUnavailable):
    """The answer is of no use, which may be due to what was asked."""


class _NoAnswer(_Failed):
    """There was none, which may be due to what was asked, too."""


class LeftAlone(WhoamiUnavailable):
    """Nobody was asked: every URL has failed too often, and rests."""


class TokenUnanswerable(WhoamiUnavailable):
    """Synapse fails over this token, though it can be asked about others."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who the client is, as its proxy says.

    Synapse records the address and user agent of a whoami request as those of the user's
    device, so they have to be the client's.
    """

    forwarded_for: bytes | None = None
    user_agent: bytes | None = None


@dataclass(frozen=True, slots=True)
class ServerState:
    """One URL: whether it is left alone now, and how many times that has begun."""

    url: str
    away: bool
    losses: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose token it is. A token without a device may be an application service's."""

    user_id: str
    has_device: bool = True


class Whoami:
    """Synapse's answer to "whose token is this?", from the first URL that has one.

    ``timeout``, in seconds, bounds a question from the first connection to the last byte; the
    URLs that are asked have an equal share of it. A URL that fails several times in a row is
    left alone for a while. ``clock`` returns seconds that never go backwards.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        transport: TransportFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = timeout
        make_transport = transport or _pooled_transport
        self._servers = [_Server(url, make_transport(url), timeout, clock) for url in urls]
        self._probes: set[asyncio.Task[None]] = set()

    async def owner(self, token: bytes, caller: Caller, user_id: str | None = None) -> Owner | None:
        """Return the token's owner, or None if Synapse rejects the token.

        With an application service's token and a ``user_id`` that is the user it names, and None
        if the service may not act for that user. Raises WhoamiUnavailable if Synapse does not
        say: LeftAlone, at once, while every URL is left alone; TokenUnanswerable if that is the
        token's fault.
        """
        headers = {
            b"authorization": b"Bearer " + token,
            b"user-agent": _passed_on(caller.user_agent or b""),
        }
        if caller.forwarded_for is not None:
            headers[b"x-forwarded-for"] = _passed_on(caller.forwarded_for)
            # Synapse warns in its log about each request that has the one without the other.
            headers[b"x-forwarded-proto"] = b"https"
        request = _Request(headers, {} if user_id is None else {"user_id": user_id})
        unavailable: type[WhoamiUnavailable] = LeftAlone
        failures = []
        present = []
        for server in self._servers:
            if not server.backoff.away:
                present.append(server)
                continue
            failures.append(server.reason)
            if server.backoff.start_probe():
                # Nobody waits for it: one that hangs would cost its caller the whole timeout.
                probe = asyncio.create_task(self._probe(server, request))
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)
        for server in present:
            if server.backoff.away:  # since a moment ago
                failures.append(server.reason)
                continue
            try:
                # An equal share for each, or a first one that hangs would leave the others none.
                return await server.ask(request, timeout=self._timeout / len(present))
            except TokenUnanswerable as exc:
                unavailable = TokenUnanswerable
                failures.append(str(exc))
            except WhoamiUnavailable as exc:
                if unavailable is LeftAlone:
                    unavailable = WhoamiUnavailable
                failures.append(str(exc))
        raise unavailable("; ".join(failures))

    async def _probe(self, server: "_Server", request: "_Request") -> None:
        with suppress(WhoamiUnavailable):  # the server has noted it
            await server.ask(request, timeout=self._timeout)

    def states(self) -> list[ServerState]:
        """Return the state of each URL."""
        return [
            ServerState(server.url, server.backoff.away, server.losses) for server in self._servers
        ]

    async def check(self) -> None:
        """Return if Synapse can be asked: without a token, it has to say that there is none.

        Raises WhoamiUnavailable if it does not. Nothing is noted: Synapse can say this much
        while what it asks itself about tokens is away.
        """
        failures = []
        for server in self._servers:
            if server.backoff.resting:
                failures.append(server.reason)
                continue
            try:
                await server.check(timeout=self._timeout / len(self._servers))
            except WhoamiUnavailable as exc:
                failures.append(str(exc))
            else:
                return
        raise WhoamiUnavailable("; ".join(failures))

    async def aclose(self) -> None:
        """Close every connection."""
        for probe in self._probes:
            probe.cancel()
        for server in self._servers:
            await server.aclose()


@dataclass(frozen=True, slots=True, repr=False)  # the headers hold a token
class _Request:
    headers: dict[bytes, bytes]
    params: Mapping[str, str]


class _Server:
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
        self._transport = transport
        self._whoami = httpx.URL(("http://localhost" if url.startswith("unix:") else url) + _PATH)

    async def ask(self, request: _Request, *, timeout: float) -> Owner | None:  # noqa: ASYNC109
        """Return whom Synapse names, and note whether it did; raises WhoamiUnavailable."""
        mark = self.backoff.mark
        deadline = time.monotonic() + timeout
        try:
            async with self._in_time(timeout):
                owner = await self._get(request)
        except _Failed as exc:
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
        examination = self._examine(anew=isinstance(failure, _NoAnswer))
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
            await self._get(_Request({}, {}))

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
        was_away = self.backoff.away
        self.backoff.succeeded(mark)
        if was_away and not self.backoff.away:
            logger.info("Synapse can be asked again", extra={"url": self.url})

    def _note_failure(self, mark: int, exc: WhoamiUnavailable) -> None:
        if self._closed:
            return  # by ourselves
        was_away = self.backoff.away
        self.reason = str(exc)
        self.backoff.failed(mark, retry_after=exc.retry_after)
        if self.backoff.away and not was_away:
            self.losses += 1
            logger.warning(
                "Synapse cannot be asked, and is left alone for a while",
                extra={"url": self.url, "reason": str(exc)},
            )

    @asynccontextmanager
    async def _in_time(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as exc:
            raise WhoamiUnavailable(f"{self.url} did not answer in time") from exc

    async def _get(self, request: _Request) -> Owner | None:
        url = self._whoami.copy_merge_params(request.params) if request.params else self._whoami
        try:
            # Straight to the transport. What a client of httpx's would do on the way takes half of
            # a lookup's time, and is not wanted: no cookie of one answer may travel with another
            # user's token, and no redirect is followed with one.
            response = await self._transport.handle_async_request(
                httpx.Request("GET", url, headers=_HEADERS | request.headers)
            )
            try:
                return _owner(response, await _body(response))
            finally:
                await response.aclose()
        except WhoamiUnavailable as exc:
            raise type(exc)(f"{self.url} {exc}", retry_after=exc.retry_after) from exc
        # Whatever it is: httpx-aiohttp lets some of aiohttp's own errors through, and a probe has
        # to report in any case.
        except Exception as exc:  # noqa: BLE001
            reason = _describe(exc)
        # Out here, without a cause: what aiohttp raises holds the request, and with it the token.
        raise _NoAnswer(f"{self.url} failed to answer ({reason})")

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._examination is not None:
            self._examination.cancel()
        await self._transport.aclose()


async def _body(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _LONGEST_ANSWER:
            raise _Failed(f"answered more than {_LONGEST_ANSWER} bytes")
    return body


def _owner(response: httpx.Response, body: bytes) -> Owner | None:
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return None
    reason = f"answered {response.status_code}"
    if response.status_code in _AWAY:
        raise WhoamiUnavailable(reason, retry_after=_retry_after(response))
    if response.status_code != HTTPStatus.OK:
        raise _Failed(reason)
    try:
        answer = json.loads(body)
        user_id = answer["user_id"]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _Failed("answered without a user_id") from exc
    if not isinstance(user_id, str):
        raise _Failed("answered with a user_id that is no text")
    return Owner(user_id, has_device=answer.get("device_id") is not None)


def _retry_after(response: httpx.Response) -> float | None:
    """Return for how many seconds the server wants to be left alone, if it does.

    See ``Retry-After`` in RFC 9110, section 10.2.3: seconds, or a date.
    """
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date; a date without a zone
        # Too many requests is a wish to rest, though not for how long.
        return 0.0 if response.status_code == HTTPStatus.TOO_MANY_REQUESTS else None


def _passed_on(value: bytes) -> bytes:
    """Return as much of a client's header as Synapse will take, whatever the client sent."""
    text = value[:_LONGEST_PASSED_ON].decode(errors="ignore")
    return "".join(filter(str.isprintable, text)).encode()


def _describe(exc: Exception) -> str:
    # httpx-aiohttp calls a refused connection a ConnectTimeout; its cause says what happened.
    cause = exc.__cause__ or exc
    if isinstance(cause, aiohttp.ClientConnectorError):
        number = cause.os_error.errno or 0
        # A name that cannot be resolved has a number of its own, below zero.
        return os.strerror(number) if number > 0 else str(cause.os_error.strerror)
    return type(cause).__name__  # and not its text, which may quote what Synapse sent


def _pooled_transport(url: str) -> httpx.AsyncBaseTransport:
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
