"""Whose opaque tokens are: an authentication service, as much of it as Synapse asks."""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

_CLIENT_API = "urn:matrix:client:api:*"
_DEVICE = "urn:matrix:client:device:"


@dataclass(frozen=True, slots=True)
class _Session:
    localpart: str
    device_id: str
    expires: float | None


class AuthenticationService:
    """An ASGI application that answers Synapse as Matrix Authentication Service does.

    It issues tokens itself. ``secret`` is shared with Synapse.
    """

    def __init__(self) -> None:
        self.secret = secrets.token_hex()
        self._sessions: dict[str, _Session] = {}
        self._available = True
        self._app = Starlette(
            routes=[Route("/oauth2/introspect", self._introspect, methods=["POST"])]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def settings(self, address: str) -> Mapping[str, Any]:
        """Return what Synapse is told to leave authentication to the service at ``host:port``."""
        return {
            "matrix_authentication_service": {
                "enabled": True,
                "endpoint": f"http://{address}/",
                "secret": self.secret,
            },
            # Synapse does not start with both.
            "password_config": {"enabled": False},
        }

    def issue(
        self, localpart: str, device_id: str, *, seconds: float = 300, compatible: bool = False
    ) -> str:
        """Return a new token of a device, valid for so many seconds.

        Compatible is one that a client got by the login of old; it does not expire.
        """
        kind = "mct" if compatible else "mat"
        token = f"{kind}_{secrets.token_hex(15)}_{secrets.token_hex(3)}"
        expires = None if compatible else time.monotonic() + seconds
        self._sessions[token] = _Session(localpart, device_id, expires)
        return token

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Answer nothing but 503 until the context is left."""
        self._available = False
        try:
            yield
        finally:
            self._available = True

    async def _introspect(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.secret}"
        if not self._available:
            return Response(status_code=503)
        form = parse_qs((await request.body()).decode())
        session = self._sessions.get(form["token"][0])
        if session is None:
            return JSONResponse({"active": False})
        known = {"active": True, "username": session.localpart, "scope": _CLIENT_API}
        if session.expires is None:
            return JSONResponse({**known, "device_id": session.device_id})
        left = int(session.expires - time.monotonic())
        if left <= 0:
            return JSONResponse({"active": False})
        scope = f"{_CLIENT_API} {_DEVICE}{session.device_id}"
        return JSONResponse({**known, "scope": scope, "expires_in": left})
