"""The ASGI application: its routes, and what they are wired from."""

import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from whoami_router import tokens
from whoami_router.resolver import Resolver
from whoami_router.settings import Settings
from whoami_router.whoami import Caller, TransportFactory, Whoami, WhoamiUnavailable

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    transport: TransportFactory | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> "Application":
    """Return the service; tests pass their own transport to Synapse and their own clock."""
    whoami = Whoami(
        settings.synapse_urls,
        timeout=settings.whoami_timeout,
        transport=transport,
        clock=clock,
    )
    resolver = Resolver(
        whoami.owner,
        cache_size=settings.cache_size,
        cache_ttl=settings.cache_ttl,
        stale_ttl=settings.stale_ttl,
        rejected_size=settings.rejected_size,
        rejected_ttl=settings.rejected_ttl,
        max_lookups=settings.max_lookups,
        decode_native_tokens=settings.native_tokens == "decode",
        clock=clock,
    )

    async def health(_: Request) -> Response:
        return Response(status_code=204)

    async def ready(_: Request) -> Response:
        try:
            await whoami.check()
        except WhoamiUnavailable as exc:
            return PlainTextResponse(f"Synapse cannot be asked: {exc}\n", status_code=503)
        return Response(status_code=204)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await whoami.aclose()

    others = Starlette(routes=[Route("/health", health), Route("/ready", ready)], lifespan=lifespan)
    others.router.redirect_slashes = False  # "/health/" is a mistake to be seen, as a 404
    return Application(resolver, others, edge_ttl=settings.edge_ttl)


class Application:
    """Answers ``/resolve``, and leaves everything else to ``others``.

    Any request there is answered 204, with the identifier to route by if there is one; of any
    method: nginx asks with GET, other proxies with the client's.

    The proxy waits for this answer before every sync. So ``/resolve`` is no Route: for a token
    that is remembered, the way to one would cost more than the answer.
    """

    def __init__(self, resolver: Resolver, others: Starlette, *, edge_ttl: int) -> None:
        self.resolver = resolver
        self.others = others
        # X-Accel-Expires is for nginx, if it has a cache of its own; no client sees it.
        self._repeatable = (b"x-accel-expires", b"%d" % edge_ttl)
        self._remembered = [(b"x-user-identifier-source", b"cache"), self._repeatable]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its body, if there is one, does not matter."""
        if scope.get("path") != "/resolve":
            await self.others(scope, receive, send)
            return
        try:
            headers = tokens.by_name(scope["headers"])
            token = tokens.extract_token(headers)
            # All but one request in a thousand need no more than this.
            identifier = None if token is None else self.resolver.remembered(token)
            if identifier is not None:
                answer = [*self._remembered, (b"x-user-identifier", identifier.encode())]
            else:
                answer = await self._resolve(token, headers)
        except Exception as exc:  # noqa: BLE001  (a defect of ours must not fail a sync)
            # The place but not the message, which could quote what the client sent.
            place = "".join(traceback.format_tb(exc.__traceback__))
            logger.error(  # noqa: TRY400  (.exception would add the message)
                "%s while resolving, please report:\n%s", type(exc).__name__, place
            )
            answer = []
        await send({"type": "http.response.start", "status": 204, "headers": answer})
        await send({"type": "http.response.body"})

    async def _resolve(
        self, token: bytes | None, headers: tokens.Headers
    ) -> list[tuple[bytes, bytes]]:
        caller = Caller(headers.get(b"x-forwarded-for"), headers.get(b"user-agent"))
        resolution = await self.resolver.resolve(token, caller, tokens.original_uri(headers))
        answer = [
            (b"x-user-identifier-source", resolution.source.encode()),
            self._repeatable if resolution.repeatable else (b"x-accel-expires", b"0"),
        ]
        if resolution.identifier is not None:
            answer.append((b"x-user-identifier", resolution.identifier.encode()))
        return answer
