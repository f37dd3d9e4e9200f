"""The ASGI application: ``/resolve``, and what it is wired from."""

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from whoami_router import tokens
from whoami_router.admin import create_admin
from whoami_router.defects import Defects
from whoami_router.metrics import Metrics
from whoami_router.resolver import Resolver
from whoami_router.settings import Settings
from whoami_router.whoami import Caller, TransportFactory, Whoami

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
    metrics = Metrics(clock=clock)
    resolver = Resolver(
        metrics.timed(whoami.owner),
        cache_size=settings.cache_size,
        cache_ttl=settings.cache_ttl,
        stale_ttl=settings.stale_ttl,
        rejected_size=settings.rejected_size,
        rejected_ttl=settings.rejected_ttl,
        max_lookups=settings.max_lookups,
        decode_native_tokens=settings.native_tokens == "decode",
        clock=clock,
    )
    metrics.watch(resolver, whoami.states)
    admin = create_admin(check=whoami.check, metrics=metrics, close=whoami.aclose)
    return Application(resolver, metrics, admin, settings)


class Application:
    """Answers ``/resolve``, and leaves everything else to ``others``.

    Any request there is answered 204, with the identifier to route by if there is one; of any
    method: nginx asks with GET, other proxies with the client's. ``admin`` is what is not for
    the proxy; it is ``others``, unless it has a listener of its own (``--admin-listen``).

    The proxy waits for this answer before every sync. So ``/resolve`` is no Route: for a token
    that is remembered, the way to one would cost more than the answer.
    """

    def __init__(
        self, resolver: Resolver, metrics: Metrics, admin: Starlette, settings: Settings
    ) -> None:
        self.resolver = resolver
        self.admin = admin
        self.others = admin if settings.admin_listen is None else _nothing(admin)
        self._resolves = metrics.resolves
        self._defects = Defects(logger, clock=time.monotonic)
        # X-Accel-Expires is for nginx, if it has a cache of its own; no client sees it.
        self._repeatable = (b"x-accel-expires", b"%d" % settings.edge_ttl)
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
                self._resolves["cache"] += 1
                answer = [*self._remembered, (b"x-user-identifier", identifier.encode())]
            else:
                answer = await self._resolve(token, headers)
        except asyncio.CancelledError:
            answer = []  # the service ends in haste, and says 204 all the same
        except Exception as exc:  # noqa: BLE001  (a defect of ours must not fail a sync)
            self._defects.report("error while resolving, please report", exc)
            self._resolves["error"] += 1
            answer = []
        await send({"type": "http.response.start", "status": 204, "headers": answer})
        await send({"type": "http.response.body"})

    async def _resolve(
        self, token: bytes | None, headers: tokens.Headers
    ) -> list[tuple[bytes, bytes]]:
        caller = Caller(headers.get(b"x-forwarded-for"), headers.get(b"user-agent"))
        resolution = await self.resolver.resolve(token, caller, tokens.original_uri(headers))
        self._resolves[resolution.source] += 1
        answer = [
            (b"x-user-identifier-source", resolution.source.encode()),
            self._repeatable if resolution.repeatable else (b"x-accel-expires", b"0"),
        ]
        if resolution.identifier is not None:
            answer.append((b"x-user-identifier", resolution.identifier.encode()))
        return answer


def _nothing(admin: Starlette) -> Starlette:
    """Return what has no routes, but lives as long as ``admin``."""
    return Starlette(lifespan=admin.router.lifespan_context)
