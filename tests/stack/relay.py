"""Stands between the router and Synapse: passes on, counts, and misbehaves when it is told to."""

import asyncio
import hashlib
import re
import secrets
import threading
from collections import Counter
from contextlib import suppress
from enum import Enum, auto
from typing import Self

_TOKEN = re.compile(rb"\r\nauthorization: Bearer ([^\r]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _answer(status: str, body: bytes = b"{}", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


_REJECTED = _answer("401 Unauthorized", b'{"errcode": "M_UNKNOWN_TOKEN", "error": "unknown"}')
_OWNER = _answer("200 OK", b'{"user_id": "@nobody:example.org"}')


class Fault(Enum):
    """What the relay does with a request instead of passing it on."""

    NONE = auto()
    REFUSE = auto()
    """Nobody listens, and every connection is closed."""
    ERROR = auto()
    LIMIT = auto()
    LIMIT_WITH_RETRY_AFTER = auto()
    GARBAGE = auto()
    HALF = auto()
    """Half of an answer, and then the end of the connection."""
    DRIP = auto()
    """A good answer, a byte each second."""


_ANSWERS = {
    Fault.ERROR: _answer("500 Internal Server Error"),
    Fault.LIMIT: _answer("429 Too Many Requests"),
    Fault.LIMIT_WITH_RETRY_AFTER: _answer("429 Too Many Requests", headers="Retry-After: 60\r\n"),
}


class Counts:
    """What reached the relay from one moment to another."""

    def __init__(self) -> None:
        self.most_in_flight = 0
        self._by_token: Counter[bytes] = Counter()

    def add(self, token: bytes, in_flight: int) -> None:
        """Note a request; without a token it is a probe of the router's ``/ready``."""
        self._by_token[_digest(token)] += 1
        self.most_in_flight = max(self.most_in_flight, in_flight)

    @property
    def requests(self) -> int:
        """How many requests there were."""
        return self._by_token.total()

    @property
    def tokens(self) -> int:
        """How many tokens they were about."""
        return len(self._by_token)

    @property
    def most_of_a_token(self) -> int:
        """How many requests there were about the token that there were most about."""
        return max(self._by_token.values(), default=0)

    def of(self, token: str) -> int:
        """How many requests there were about this token."""
        return self._by_token[_digest(token.encode())]


class Relay:
    """What the router takes for Synapse; ``target`` is the real one, as an address.

    A context manager; it has a thread of its own. ``fault`` may be set at any time. Tokens that
    start with ``rejected_prefix`` are rejected here, as fast as Synapse never could.
    """

    def __init__(self, target: str, *, rejected_prefix: str | None = None) -> None:
        self.counts = Counts()
        self.in_flight = 0
        self.rejected_prefix = rejected_prefix.encode() if rejected_prefix else None
        self._target = target
        self._fault = Fault.NONE
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """The router's ``--synapse-url``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def fault(self) -> Fault:
        """What is wrong at the moment."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self._wait(self._close() if fault is Fault.REFUSE else self._listen())

    def count_anew(self) -> Counts:
        """Return the counts of what comes from now on."""
        self.counts = Counts()
        return self.counts

    async def answer(self, head: bytes, connection: "_Connection") -> None:
        """Do with one request what is to be done at the moment."""
        match self._fault:
            case Fault.NONE | Fault.REFUSE:
                await connection.pass_on(head, self._target)
            case Fault.GARBAGE:
                connection.write(secrets.token_bytes(200))
            case Fault.HALF:
                connection.write(_OWNER[:-10])
                connection.close()
            case Fault.DRIP:
                for byte in _OWNER:
                    connection.write(bytes([byte]))
                    await asyncio.sleep(1)
            case fault:
                connection.write(_ANSWERS[fault])

    async def _run(self) -> None:
        self._loop, self._leaving = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        self._listening.set()
        await self._leaving.wait()
        await self._close()

    async def _listen(self) -> None:
        if self._server is not None:
            return
        self._server = await self._loop.create_server(
            lambda: _Connection(self, self._connections), "127.0.0.1", self._port, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        ending = [connection.ended for connection in self._connections]
        for connection in list(self._connections):
            connection.close()
        await asyncio.gather(*ending)

    def _wait(self, coroutine) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)


class _Connection(asyncio.Protocol):
    """One connection of the router, and the one to Synapse that belongs to it."""

    def __init__(self, relay: Relay, connections: set["_Connection"]) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._relay = relay
        self._connections = connections
        self._received = b""
        self._task: asyncio.Task[None] | None = None
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        # A whoami request has no body, and the router sends one after the other.
        self._received += data
        if not self._received.endswith(b"\r\n\r\n"):
            return
        head, self._received = self._received, b""
        found = _TOKEN.search(head)
        token = found[1] if found else b""
        relay = self._relay
        relay.in_flight += 1
        relay.counts.add(token, relay.in_flight)
        if relay.rejected_prefix and token.startswith(relay.rejected_prefix):
            relay.in_flight -= 1
            self.write(_REJECTED)
            return
        self._task = asyncio.create_task(relay.answer(head, self))
        self._task.add_done_callback(self._answered)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()
        self._ending = asyncio.create_task(self._end())

    def write(self, data: bytes) -> None:
        """Send to the router, if it is still there."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection; what was written is still sent."""
        self._transport.close()

    async def pass_on(self, head: bytes, target: str) -> None:
        """Answer what Synapse answers; without an answer, close the connection as Synapse did."""
        try:
            if self._upstream is None:
                self._upstream = await _connect(target)
            reader, writer = self._upstream
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(answer)
            if length is None:
                answer += await reader.readuntil(b"\r\n0\r\n\r\n")  # in chunks
            else:
                answer += await reader.readexactly(int(length[1]))
            self.write(answer)
        except (OSError, EOFError):
            self.close()

    async def _end(self) -> None:
        if self._upstream is not None:
            _, writer = self._upstream
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        self._connections.discard(self)
        self.ended.set_result(None)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._relay.in_flight -= 1
        with suppress(asyncio.CancelledError):
            task.result()  # a mistake of ours is to be in the log


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()[:8]
