"""HTTP as it is spoken with a proxy: what is none of it meets a closed connection."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The headers of a request. nginx passes on four lines of at most 8 KiB each.
_LONGEST_HEADERS = 64 * 1024


class Protocol(HttpToolsProtocol):
    """uvicorn's, but without an answer to what it cannot read, and with a bound on headers.

    The service promises to answer nothing but 204. nginx sends nothing malformed, so whoever
    does is owed no explanation; to nginx a closed connection is a router that failed, and it
    routes by token.
    """

    _unfinished = 0  # bytes received since the last complete set of headers

    def data_received(self, data: bytes) -> None:
        """Read what the peer sent; give up on headers without an end."""
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > _LONGEST_HEADERS:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Start to answer."""
        self._unfinished = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:  # noqa: ARG002
        """Drop the body: no answer depends on it."""
        self._unfinished = 0

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Close the connection."""
        self.transport.close()
