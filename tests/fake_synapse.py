"""A small Synapse: it knows some tokens, and says of any other request that it came here."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

WHOAMI = "/_matrix/client/v3/account/whoami"


@dataclass
class FakeSynapse:
    """An ASGI application; ``requests`` holds what it was asked, oldest first.

    ``most_in_flight`` is how many of them there were at one time.

    ``owners`` maps tokens to user IDs. ``services`` maps the tokens of application services to
    the users they may act for, the service's own first. ``breaking`` are tokens that it fails
    over. ``answer`` replaces every answer, ``held`` holds it back.
    """

    name: str = "synapse"
    owners: dict[str, str] = field(default_factory=dict)
    services: dict[str, list[str]] = field(default_factory=dict)
    breaking: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    most_in_flight: int = 0
    answer: Response | None = None
    held: bool = False

    def __post_init__(self) -> None:
        self._in_flight = 0
        self.app = Starlette(
            routes=[Route(WHOAMI, self._whoami), Route("/{path:path}", _Anything(self))]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.requests.append(Request(scope))
        self._in_flight += 1
        self.most_in_flight = max(self._in_flight, self.most_in_flight)
        try:
            while self.held:  # noqa: ASYNC110  (set by another thread, for which no Event is safe)
                await asyncio.sleep(0.01)
            await (self.answer or self.app)(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _whoami(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self.breaking:
            return JSONResponse({"errcode": "M_UNKNOWN", "error": "Internal server error"}, 500)
        if token in self.owners:
            return JSONResponse({"user_id": self.owners[token], "device_id": "DEVICE"})
        if token in self.services:
            user_id = request.query_params.get("user_id", self.services[token][0])
            if user_id in self.services[token]:
                return JSONResponse({"user_id": user_id})
            return JSONResponse({"errcode": "M_FORBIDDEN", "error": "Not yours"}, 403)
        return JSONResponse({"errcode": "M_UNKNOWN_TOKEN", "error": "Unknown token"}, 401)


@dataclass
class _Anything:
    """An endpoint for every path and method that names the server and repeats the request."""

    synapse: FakeSynapse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        response = JSONResponse(
            {
                "server": self.synapse.name,
                "method": request.method,
                "uri": scope["raw_path"].decode() + "?" + scope["query_string"].decode(),
                "headers": dict(request.headers),
                "body": body.decode(),
            }
        )
        await response(scope, receive, send)


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve the application over TCP; yield its ``host:port``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                lifespan="off",
                ws="none",
                timeout_keep_alive=75,
                proxy_headers=False,  # tests count connections by the peer's port
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            server.force_exit = True  # connections that somebody keeps alive must not hold us up
            thread.join()
