"""whoami-router, as an administrator runs it."""

import sys
from pathlib import Path

from tests.stack.process import Process, accepts, free_port


class Router(Process):
    """``whoami-router serve`` on a free port or at ``listen``, with further options."""

    def __init__(
        self, directory: Path, synapse_url: str, *options: str, listen: str | None = None
    ) -> None:
        self.address = listen or f"127.0.0.1:{free_port()}"
        super().__init__(
            "whoami-router",
            [
                *(sys.executable, "-m", "whoami_router", "serve"),
                *("--synapse-url", synapse_url, "--listen", self.address, *options),
            ],
            directory / "router.log",
            ready=lambda: accepts(self.address),
        )
