"""Asks Synapse whose token it is: one GET of ``account/whoami``."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx

from whoami_router.answers import LeftAlone, Owner, TokenUnanswerable, WhoamiUnavailable
from whoami_router.server import Request, Server, ServerState, pooled_transport

__all__ = [
    "Caller",
    "LeftAlone",
    "Owner",
    "ServerState",
    "TokenUnanswerable",
    "TransportFactory",
    "Whoami",
    "WhoamiUnavailable",
]

# So much of a header of the client's is passed on. Twisted hangs up beyond 16 KiB a line.
_LONGEST_PASSED_ON = 1024

TransportFactory = Callable[[str], httpx.AsyncBaseTransport]
"""Makes the transport for one ``http://host:port`` or ``unix:/path``."""


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
        make_transport = transport or pooled_transport
        self._servers = [Server(url, make_transport(url), timeout, clock) for url in urls]
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
        request = Request(headers, {} if user_id is None else {"user_id": user_id})
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

    async def _probe(self, server: Server, request: Request) -> None:
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


def _passed_on(value: bytes) -> bytes:
    """Return as much of a client's header as Synapse will take, whatever the client sent."""
    text = value[:_LONGEST_PASSED_ON].decode(errors="ignore")
    return "".join(filter(str.isprintable, text)).encode()
