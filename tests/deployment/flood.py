"""Asks the router itself, as fast as it answers."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator


def flood(path: str, tokens: Iterable[str], *, connections: int, times: int = 1) -> Counter[str]:
    """Ask about each token at the UNIX socket; return how often there was which source.

    So many connections ask at the same time. About one token each asks so many times, without
    waiting for an answer in between. No answer, or one but 204, is counted as "failed"; a
    connection that is lost asks nothing more.
    """
    return asyncio.run(_flood(path, iter(tokens), connections, times))


async def _flood(path: str, tokens: Iterator[str], connections: int, times: int) -> Counter[str]:
    loop = asyncio.get_running_loop()
    sources: Counter[str] = Counter()
    made = [
        await loop.create_unix_connection(lambda: _Connection(tokens, sources, times), path)
        for _ in range(connections)
    ]
    for _, connection in made:
        connection.ask()
    await asyncio.gather(*(connection.ended for _, connection in made))
    return sources


class _Connection(asyncio.Protocol):
    def __init__(self, tokens: Iterator[str], sources: Counter[str], times: int) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._tokens = tokens
        self._sources = sources
        self._times = times
        self._received = b""
        self._unanswered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        *answers, self._received = self._received.split(b"\r\n\r\n")  # a 204 has no body
        for answer in answers:
            self._unanswered -= 1
            _, named, source = answer.partition(b"x-user-identifier-source: ")
            good = named and answer.startswith(b"HTTP/1.1 204 ")
            self._sources[source.partition(b"\r\n")[0].decode() if good else "failed"] += 1
        if not self._unanswered:
            self.ask()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._unanswered:
            self._sources["failed"] += self._unanswered
        self.ended.set_result(None)

    def ask(self) -> None:
        """Ask about the next token; without one, close the connection."""
        token = next(self._tokens, None)
        if token is None:
            self._transport.close()
            return
        request = f"GET /resolve HTTP/1.1\r\nHost: router\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._unanswered += self._times
        self._transport.write(request.encode() * self._times)
