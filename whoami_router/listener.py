"""Opens the socket that the service listens on."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from whoami_router.settings import Inherited, ListenAddress, Tcp, Unix


class CannotListen(Exception):  # noqa: N818  (the name says the consequence)
    """The address cannot be listened on; says why and what to do about it."""


class Listener:
    """A listening socket, and whether clients can still find it."""

    def __init__(self, listening: socket.socket, made: Path | None) -> None:
        self.socket = listening
        self._made = made
        self._identity = None if made is None else _identity(made)

    @property
    def address(self) -> ListenAddress:
        """The address that the socket really has: the system may have chosen the port."""
        name = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            # An abstract socket (Linux) has a name in bytes, which starts with NUL.
            return Unix(Path(os.fsdecode(name).replace("\0", "@")))
        return Tcp(name[0], name[1])

    def reachable(self) -> bool:
        """Return whether the UNIX socket that was made is still at its path."""
        if self._made is None:
            return True
        try:
            return _identity(self._made) == self._identity
        except FileNotFoundError:
            return False
        except OSError:  # the file system has a bad moment: no reason to give up
            return True

    def close(self) -> None:
        """Stop listening and remove the UNIX socket, unless it is a successor's by now."""
        self.socket.close()
        if self._made is not None and self.reachable():
            with suppress(OSError):
                self._made.unlink()


@contextmanager
def open_listener(address: ListenAddress) -> Iterator[Listener]:
    """Yield a listening socket; afterwards close it and remove the UNIX socket it made.

    Raises CannotListen.
    """
    try:
        match address:
            case Tcp(host, port):
                listener = Listener(_bind_tcp(host, port), None)
            case Unix(path):
                listener = Listener(_bind_unix(path), path)
            case Inherited(fd):
                listener = Listener(_inherit(fd), None)
    except (OSError, UnicodeError, OverflowError) as exc:  # the latter two: no host name, no fd
        raise CannotListen(getattr(exc, "strerror", None) or str(exc)) from exc
    try:
        yield listener
    finally:
        listener.close()


def _identity(path: Path) -> tuple[int, int]:
    # The time, too: a file system may give the number to the next file at once.
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, name = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # Or a restart would have to wait until the last connections' TIME_WAIT is over.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
        listener.listen()  # now, or two processes could bind and one fail later
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX)
    # nginx runs as another user. Who may connect is decided by the directory's mode. A umask
    # rather than a chmod: there is no moment in which the mode is another.
    umask = os.umask(0o111)
    try:
        listener.bind(str(path))
        listener.listen()
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more, and nothing else."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise CannotListen("there is a file that is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        # Or a process that hangs, its backlog full, would make us wait for it.
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise CannotListen("another process listens there; stop it or choose another path")


def _inherit(fd: int) -> socket.socket:
    listener = socket.socket(fileno=fd)
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise CannotListen("this descriptor is a socket that does not listen")
    return listener
