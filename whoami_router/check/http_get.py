"""One GET over TCP or a UNIX socket, with a deadline, and the reason if there is no answer.

A health check runs every few seconds in each container: a socket costs a tenth of what it takes
to load ``http.client``.
"""

import re
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from whoami_router.settings import Tcp, Unix

# Whatever listens there: this much of its answer is read.
_LONGEST_ANSWER = 64 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r?\n)")
_NO_BODY = (204, 304)


class Reason(Enum):
    """Why there was no answer."""

    MISSING = auto()  # no such socket
    NO_SOCKET = auto()  # a file that is no socket
    FORBIDDEN = auto()
    REFUSED = auto()
    UNKNOWN_HOST = auto()
    UNREACHABLE = auto()
    LATE = auto()
    CLOSED = auto()  # without a word
    NOT_HTTP = auto()


class NoAnswer(Exception):  # noqa: N818  (the name says the consequence)
    """There was no answer; its text never quotes what was sent."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def get(
    address: Tcp | Unix, path: str, headers: Mapping[str, bytes] | None = None, *, timeout: float
) -> Answer:
    """Return the answer to a GET; raises NoAnswer, after ``timeout`` seconds at the latest."""
    deadline = time.monotonic() + timeout
    host = "localhost" if isinstance(address, Unix) else str(address)
    # HTTP/1.0: the answer comes in one piece, and the connection is closed behind it.
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n".encode()
    for name, value in (headers or {}).items():
        request += name.encode() + b": " + value + b"\r\n"
    try:
        with _connected(address, deadline) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(request + b"\r\n")
            answer = b""
            while not _is_complete(answer):
                connection.settimeout(_left(deadline))
                part = connection.recv(_LONGEST_ANSWER)
                if not part:
                    break
                answer += part
    except TimeoutError as exc:
        raise NoAnswer(Reason.LATE, f"did not answer within {timeout:g} s") from exc
    except OSError as exc:
        raise _no_answer(exc, address) from exc
    except UnicodeError as exc:  # of a name that none can have
        raise NoAnswer(Reason.UNKNOWN_HOST, "there is no host of this name") from exc
    return _read(answer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connected(address: Tcp | Unix, deadline: float) -> socket.socket:
    if isinstance(address, Unix):
        return _connected_to(socket.AF_UNIX, str(address.path), deadline)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    *others, last = [(family, place) for family, _, _, _, place in found]
    for family, place in others:
        with suppress(OSError):  # an address of the host's at which it does not listen
            return _connected_to(family, place, deadline)
    return _connected_to(*last, deadline)


def _connected_to(family: int, place: Any, deadline: float) -> socket.socket:  # noqa: ANN401
    connection = socket.socket(family)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


# By the first that fits.
_REASONS: tuple[tuple[type[OSError], Reason, str], ...] = (
    (ConnectionRefusedError, Reason.REFUSED, "nobody listens there"),
    (FileNotFoundError, Reason.MISSING, "there is no such socket"),
    (NotADirectoryError, Reason.MISSING, "there is no such socket"),
    (PermissionError, Reason.FORBIDDEN, "this user may not connect"),
    # A UNIX socket whose queue is full.
    (BlockingIOError, Reason.LATE, "takes no more connections: it hangs, or has too many"),
    (socket.gaierror, Reason.UNKNOWN_HOST, "there is no host of this name"),
    (ConnectionError, Reason.CLOSED, "closed the connection without an answer"),
)


def _no_answer(exc: OSError, address: Tcp | Unix) -> NoAnswer:
    if isinstance(exc, ConnectionRefusedError) and not _may_be_socket(address):
        return NoAnswer(Reason.NO_SOCKET, "is a file, but no socket")
    for kind, reason, text in _REASONS:
        if isinstance(exc, kind):
            return NoAnswer(reason, text)
    return NoAnswer(Reason.UNREACHABLE, exc.strerror or type(exc).__name__)


def _may_be_socket(address: Tcp | Unix) -> bool:
    if isinstance(address, Tcp):
        return True
    try:
        return stat.S_ISSOCK(address.path.stat().st_mode)
    except OSError:
        return True  # nothing is known against it


def _is_complete(answer: bytes) -> bool:
    if len(answer) >= _LONGEST_ANSWER:
        return True
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end or not (status := _STATUS_LINE.match(head + b"\r\n")):
        return False
    length = re.search(rb"\r\ncontent-length: *([0-9]{1,9})\r\n", head + b"\r\n", re.IGNORECASE)
    return int(status[1]) in _NO_BODY or (length is not None and len(body) >= int(length[1]))


def _read(answer: bytes) -> Answer:
    if not answer:
        raise NoAnswer(Reason.CLOSED, "closed the connection without an answer")
    status = _STATUS_LINE.match(answer)
    if status is None:
        raise NoAnswer(Reason.NOT_HTTP, "does not speak HTTP")
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    return Answer(
        int(status[1]), {name.strip().lower(): value.strip() for name, _, value in lines}, body
    )
