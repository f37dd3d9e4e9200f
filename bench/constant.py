"""The least that an ASGI service costs: one answer to everything, in whoami-router's place."""

import socket
import sys
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from whoami_router.serve import uvicorn_config

# What whoami-router says of a token that it remembers.
_START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 204,
    "headers": [
        (b"x-user-identifier-source", b"cache"),
        (b"x-accel-expires", b"60"),
        (b"x-user-identifier", b"dXNlcjEyMzQ1"),
    ],
}
_BODY: dict[str, Any] = {"type": "http.response.body"}


async def constant(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """Answer."""
    await send(_START)
    await send(_BODY)


def serve(port: int) -> None:
    """Serve as whoami-router is served, but over uvicorn's own HTTP."""
    config = uvicorn_config(constant, lifespan="off")
    config.http = "httptools"
    with socket.create_server(("127.0.0.1", port), backlog=2048) as listener:
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
