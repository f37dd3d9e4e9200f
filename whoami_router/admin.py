"""What administrators and their programs ask: health, readiness, metrics, a status page."""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from whoami_router.metrics import Metrics
from whoami_router.whoami import WhoamiUnavailable

# The page draws what it reads from /metrics, and is to do nothing else. Its styles are set by its
# script, too.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def create_admin(
    *,
    check: Callable[[], Awaitable[None]],
    metrics: Metrics,
    close: Callable[[], Awaitable[None]],
) -> Starlette:
    """Return the routes; ``check`` raises WhoamiUnavailable, ``close`` is called at the end."""
    page = files("whoami_router").joinpath("status.html").read_bytes()
    [script] = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    policy = _POLICY.format(script=b64encode(sha256(script).digest()).decode())
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }

    async def status(_: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def health(_: Request) -> Response:
        return Response(status_code=204)

    async def ready(_: Request) -> Response:
        try:
            await check()
        except WhoamiUnavailable as exc:
            return PlainTextResponse(f"Synapse cannot be asked: {exc}\n", status_code=503)
        return Response(status_code=204)

    async def exposition(request: Request) -> Response:
        text, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await close()

    admin = Starlette(
        routes=[
            Route("/", status),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", exposition),
        ],
        lifespan=lifespan,
    )
    admin.router.redirect_slashes = False  # "/health/" is a mistake to be seen, as a 404
    return admin
