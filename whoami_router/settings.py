"""The settings of a running service, and what their texts may look like."""

import re
from dataclasses import dataclass
from pathlib import Path

_LAST_PORT = 65535

_HTTP_URL = re.compile(
    r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*)"
    r"(:(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP address to listen on; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Unix:
    """A UNIX socket to create and listen on."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class Inherited:
    """A file descriptor that is a listening socket already (socket activation)."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


ListenAddress = Tcp | Unix | Inherited


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an administrator chose. Sizes are in tokens, times in seconds."""

    synapse_urls: tuple[str, ...] = ("http://127.0.0.1:8008",)
    listen: ListenAddress = Tcp("127.0.0.1", 9009)
    admin_listen: ListenAddress | None = None
    cache_size: int = 100_000
    cache_ttl: float = 3600
    stale_ttl: float = 86400
    rejected_size: int = 10_000
    rejected_ttl: float = 30
    whoami_timeout: float = 2.0
    max_lookups: int = 64
    edge_ttl: int = 60
    native_tokens: str = "whoami"
    log_level: str = "info"
    log_format: str = "console"


def parse_listen(text: str) -> ListenAddress:
    """Return the address that ``host:port``, ``unix:/path`` or ``fd:3`` stands for.

    An IPv6 address stands in brackets. Raises ValueError, worded for the administrator.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError("needs an absolute path, for example unix:/run/whoami-router/sock")
        return Unix(path)
    if text.startswith("fd:"):
        number = text.removeprefix("fd:")
        if not (number.isascii() and number.isdigit()):
            raise ValueError("needs a descriptor number, for example fd:3")
        return Inherited(int(number))
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if host in ("", "[]") or (":" in host and not bracketed):
        raise ValueError("needs host:port, unix:/path or fd:3, for example 127.0.0.1:9009")
    if not (port.isascii() and port.isdigit() and int(port) <= _LAST_PORT):
        raise ValueError("needs a port from 0 to 65535, for example 127.0.0.1:9009")
    return Tcp(host[1:-1] if bracketed else host, int(port))


def parse_synapse_url(text: str) -> str:
    """Return the URL without a trailing slash if Synapse can be asked there.

    That is ``http://host:port`` or ``unix:/path``. Raises ValueError, worded for the
    administrator.
    """
    if text.startswith("unix:"):
        if not Path(text.removeprefix("unix:")).is_absolute():
            raise ValueError("needs an absolute path, for example unix:/run/synapse/main.sock")
        return text
    found = _HTTP_URL.fullmatch(text)
    if found is None or not 0 < int(found["port"] or 80) <= _LAST_PORT:
        raise ValueError(
            "needs http://host:port (no user, path or query) or unix:/path, "
            "for example http://127.0.0.1:8008"
        )
    return text.removesuffix("/")
