"""whoami-router, as an administrator runs it."""

import socket
import sys
from pathlib import Path

from tests.stack.process import Process, accepts, free_port


class Router(Process):
    """``whoami-router serve`` on a free port, at ``listen`` or on an inherited socket."""

    def __init__(
        self,
        directory: Path,
        synapse_url: str,
        *options: str,
        listen: str | None = None,
        inherited: socket.socket | None = None,
    ) -> None:
        if inherited is not None:
            name = inherited.getsockname()
            unix = inherited.family == socket.AF_UNIX
            self.address = f"unix:{name}" if unix else f"{name[0]}:{name[1]}"
            listen = f"fd:{inherited.fileno()}"
        else:
            self.address = listen = listen or f"127.0.0.1:{free_port()}"
        super().__init__(
            "whoami-router",
            [
                *(sys.executable, "-m", "whoami_router", "serve"),
                *("--synapse-url", synapse_url, "--listen", listen, *options),
            ],
            directory / "router.log",
            ready=lambda: accepts(self.address),
            inherits=[inherited.fileno()] if inherited is not None else [],
        )
