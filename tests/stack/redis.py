"""Redis, through which Synapse's processes tell each other what is new."""

from pathlib import Path

from tests.stack.process import Process, accepts


class Redis(Process):
    """Redis on the UNIX socket ``path``; it keeps nothing on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "redis.sock"
        super().__init__(
            "Redis",
            [
                *("redis-server", "--port", "0", "--unixsocket", self.path),
                *("--save", "", "--appendonly", "no", "--dir", directory),
            ],
            directory / "redis.log",
            ready=lambda: accepts(f"unix:{self.path}"),
        )
