"""HTTP as it is spoken with a proxy: what is none of it meets a closed connection."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Beyond what a proxy sends: nginx passes on a handful of headers, in at most four lines of 8 KiB
# from the client (16 KiB with nginx/conf.d/synapse.conf), and asks one question at a time.
_LONGEST_HEADERS = 64 * 1024
_MOST_HEADERS = 100
_MOST_WAITING = 1000

# Seconds that a new connection may stay silent once the service is to end.
_LAST_WORD = 1.0

# Stands for the headers of a request that are all there.
_COMPLETE: list[tuple[bytes, bytes]] = []


class _TooMuch(Exception):  # noqa: N818  (uvicorn takes it for a parser's error, and gives up)
    """More than any proxy sends."""


class Protocol(HttpToolsProtocol):
    """uvicorn's, but without an answer to what it cannot read, and bounded in all it holds.

    The service promises to answer nothing but 204. nginx sends nothing malformed, so whoever
    does is owed no explanation; to nginx a closed connection is a router that failed, and it
    routes by token.
    """

    _unfinished = 0  # bytes received since the last complete set of headers
    _ending = False

    def data_received(self, data: bytes) -> None:
        """Read what the peer sent; give up on headers without an end."""
        self._unfinished += len(data)
        HttpToolsProtocol.data_received(self, data)
        if self._unfinished > _LONGEST_HEADERS:
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header, but none that comes behind the body: it was not meant to be one."""
        headers = self.headers
        if headers is _COMPLETE:
            return
        if len(headers) == _MOST_HEADERS:
            raise _TooMuch
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Start to answer, or wait until the requests before are answered."""
        self._unfinished = 0
        self.headers = _COMPLETE
        if len(self.pipeline) == _MOST_WAITING:
            raise _TooMuch
        HttpToolsProtocol.on_headers_complete(self)
        if self._ending or self.parser.should_upgrade():
            # At the end of the service one answer is enough. And what follows an upgrade is no
            # HTTP by the client's own words: it gets no answer that could be taken for another's.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:  # noqa: ARG002
        """Drop the body: no answer depends on it."""
        self._unfinished = 0

    def shutdown(self) -> None:
        """Close the connection once it has its answer.

        Nobody connects but to ask. So the question of a new connection is on its way, and it would
        not be asked again: a proxy does that only where a connection was of use before.
        """
        self.loop.call_later(_LAST_WORD, self._abort_if_unread)
        if self.cycle is not None:
            HttpToolsProtocol.shutdown(self)
            return
        self._ending = True
        self.loop.call_later(_LAST_WORD, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def _abort_if_unread(self) -> None:
        """Give up on a peer that does not take its answers: it would hold up the end for ever."""
        if self.flow.write_paused or self.transport.is_closing():
            self.transport.abort()
        if self in self.connections:
            self.loop.call_later(_LAST_WORD, self._abort_if_unread)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Close the connection."""
        self.transport.close()
