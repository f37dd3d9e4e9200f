"""Asks Synapse whose token it is: one GET of ``account/whoami``."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

_PATH = "/_matrix/client/v3/account/whoami"

# An answer is about 100 bytes. Whatever listens there instead, this much of it is read.
_LONGEST_ANSWER = 64 * 1024

# Twisted, under Synapse, closes a connection that was idle for 60 s. Ours are gone before.
_KEEPALIVE_SECONDS = 30

# As many connections to one Synapse as it can make use of; further lookups wait their turn
# within their own timeout.
_MAX_CONNECTIONS = 64

TransportFactory = Callable[[str], httpx.AsyncBaseTransport]
"""Makes the transport for one ``http://host:port`` or ``unix:/path``."""


class WhoamiUnavailable(Exception):  # noqa: N818  (the name says the consequence)
    """Synapse cannot be asked at the moment; says why, never with a token in it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who the client is, as its proxy says.

    Synapse records the address and user agent of a whoami request as those of the user's
    device, so they have to be the client's.
    """

    forwarded_for: bytes | None = None
    user_agent: bytes | None = None


class Whoami:
    """Synapse's answer to "whose token is this?", from the first URL that has one.

    ``timeout``, in seconds, bounds a question from the first connection to the last byte; each
    URL has an equal share of it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        transport: TransportFactory | None = None,
    ) -> None:
        self._timeout = timeout
        make_transport = transport or _pooled_transport
        self._clients = {
            url: httpx.AsyncClient(
                base_url="http://localhost" if url.startswith("unix:") else url,
                transport=make_transport(url),
                # Compression is not asked for: no small answer can unpack into a large one.
                headers={"user-agent": "whoami-router", "accept-encoding": "identity"},
                timeout=None,  # noqa: S113  (_ask has one for the whole question)
                # A cookie set in answer to one user's token must not travel with another's.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
            for url in urls
        }

    async def user_id(self, token: bytes, caller: Caller) -> str | None:
        """Return the user ID of the token's owner, or None if Synapse rejects the token.

        Raises WhoamiUnavailable if Synapse does not say.
        """
        headers = {b"authorization": b"Bearer " + token, b"user-agent": caller.user_agent or b""}
        if caller.forwarded_for is not None:
            headers[b"x-forwarded-for"] = caller.forwarded_for
            # Synapse warns in its log about each request that has the one without the other.
            headers[b"x-forwarded-proto"] = b"https"
        return await self._ask(headers)

    async def probe(self) -> None:
        """Return if Synapse can be asked: without a token, it has to say that there is none.

        Raises WhoamiUnavailable if it does not.
        """
        await self._ask({})

    async def _ask(self, headers: Mapping[bytes, bytes]) -> str | None:
        failures = []
        for url, client in self._clients.items():
            try:
                # An equal share for each, or a first one that hangs would leave the others none.
                async with asyncio.timeout(self._timeout / len(self._clients)):
                    return await _get(client, headers)
            except TimeoutError:
                failures.append(f"{url} did not answer in time")
            except WhoamiUnavailable as exc:
                failures.append(f"{url} {exc}")
        raise WhoamiUnavailable("; ".join(failures))

    async def aclose(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()


async def _get(client: httpx.AsyncClient, headers: Mapping[bytes, bytes]) -> str | None:
    body = b""
    try:
        async with client.stream("GET", _PATH, headers=headers) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _LONGEST_ANSWER:
                    raise WhoamiUnavailable(f"answered more than {_LONGEST_ANSWER} bytes")
    # httpx-aiohttp lets some of aiohttp's own errors through, for malformed answers among them;
    # a ValueError is what header values with control characters end in.
    except (httpx.HTTPError, aiohttp.ClientError, OSError, ValueError) as exc:
        raise WhoamiUnavailable(f"failed to answer ({_describe(exc)})") from exc
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return None
    if response.status_code != HTTPStatus.OK:
        raise WhoamiUnavailable(f"answered {response.status_code}")
    try:
        user_id = json.loads(body)["user_id"]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise WhoamiUnavailable("answered without a user_id") from exc
    if not isinstance(user_id, str):
        raise WhoamiUnavailable("answered with a user_id that is no text")
    return user_id


def _describe(exc: Exception) -> str:
    # httpx-aiohttp calls a refused connection a ConnectTimeout; its cause says what happened.
    cause = exc.__cause__ or exc
    # Only where the text is about the address: elsewhere it may quote what Synapse sent.
    return str(cause if isinstance(cause, aiohttp.ClientConnectorError) else type(cause).__name__)


def _pooled_transport(url: str) -> httpx.AsyncBaseTransport:
    """Return a transport over aiohttp: httpx's own costs several times the CPU per lookup."""
    path = url.removeprefix("unix:") if url.startswith("unix:") else None

    def session() -> aiohttp.ClientSession:  # called in the event loop, at the first request
        connector = (
            aiohttp.UnixConnector(
                path, limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS
            )
            if path
            else aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS)
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(client=session)
