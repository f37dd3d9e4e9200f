"""A stand-in for Synapse that sees connections, not requests."""

import re
import socket
import socketserver
import threading
from contextlib import contextmanager

from tests.stack.process import DidNotHappen, wait_until


class RawUpstream:
    """Counts what it is sent, sends as much as it is asked for, echoes WebSockets in capitals.

    ``received`` and ``sent`` are bytes of bodies, ``heads`` the requests without their bodies.
    """

    def __init__(self):
        self.address = ""
        self.received = self.sent = 0
        self.heads = []

    def wait_until_it_pauses(self):
        """Return once nobody has taken anything for half a second."""
        while True:
            before = self.sent
            try:
                wait_until(lambda sent=before: self.sent > sent, "it goes on", seconds=0.5)
            except DidNotHappen:
                return

    def serve(self, request):
        """Answer the requests of a connection."""
        with request.makefile("rb") as stream:
            while head := self._head(stream):
                self.heads.append(head)
                if {"upgrade: websocket", "connection: upgrade"} <= set(head.lower().split("\r\n")):
                    request.sendall(
                        b"HTTP/1.1 101 Switching Protocols\r\n"
                        b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
                    )
                    while data := stream.read1(65536):
                        request.sendall(data.upper())
                    return
                request.sendall(b"HTTP/1.1 200 OK\r\n")
                self._take(stream, head)
                self._give(request, head)

    @staticmethod
    def _head(stream):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := stream.readline()):
                return None
            head += line
        return head.decode()

    def _take(self, stream, head):
        length = re.search(r"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
        left = int(length[1]) if length else 0
        while left and (data := stream.read1(min(left, 65536))):
            left -= len(data)
            self.received += len(data)

    def _give(self, request, head):
        if not (size := re.search(r"^GET \S+\?size=(\d+)", head)):
            body = str(self.received).encode()
            request.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        request.sendall(f"Content-Length: {size[1]}\r\n\r\n".encode())
        for _ in range(int(size[1]) // 8192):
            request.sendall(b"x" * 8192)
            self.sent += 8192


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_):
        """Say nothing: the other side may go away."""


@contextmanager
def streamed(address=("127.0.0.1", 0)):
    """Serve a RawUpstream at an address of the socket module; yield it."""
    upstream = RawUpstream()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            upstream.serve(self.request)

    class Server(_Server):
        if isinstance(address, str):
            address_family = socket.AF_UNIX
        elif ":" in address[0]:
            address_family = socket.AF_INET6

        def get_request(self):
            request, peer = super().get_request()
            return request, peer or ("unix", 0)

    with Server(address, Handler) as server:
        if isinstance(address, str):
            upstream.address = f"unix:{address}"
        else:
            host, port = server.server_address[:2]
            upstream.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield upstream
        finally:
            server.shutdown()
            thread.join()
