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


@contextmanager
def open_listener(address: ListenAddress) -> Iterator[socket.socket]:
    """Yield a listening socket; afterwards close it and remove the UNIX socket it made.

    Raises CannotListen.
    """
    try:
        match address:
            case Tcp(host, port):
                listener = _bind_tcp(host, port)
            case Unix(path):
                listener = _bind_unix(path)
            case Inherited(fd):
                listener = _inherit(fd)
    except (OSError, UnicodeError, OverflowError) as exc:  # the latter two: no host name, no fd
        raise CannotListen(getattr(exc, "strerror", None) or str(exc)) from exc
    made = address.path.lstat().st_ino if isinstance(address, Unix) else None
    try:
        yield listener
    finally:
        listener.close()
        if isinstance(address, Unix):
            with suppress(OSError):
                if address.path.lstat().st_ino == made:  # and not a successor's
                    address.path.unlink()


def address_of(listener: socket.socket) -> ListenAddress:
    """Return the address that the socket really has: the system may have chosen the port."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        # An abstract socket (Linux) has a name in bytes, which starts with NUL.
        return Unix(Path(os.fsdecode(name).replace("\0", "@")))
    return Tcp(name[0], name[1])


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
