import os
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stack.process import free_port
from whoami_router.check.http_get import NoAnswer, Reason, get
from whoami_router.settings import Tcp, Unix


@contextmanager
def answering(*parts, forever=False):
    """Serve one connection that is answered with these parts; yield its address.

    With ``forever`` the last part is repeated until the other end goes away, and slowly; else
    the connection stays open until then.
    """
    requests = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with listener.accept()[0] as connection:
                requests.append(connection.recv(65536))
                try:
                    for part in parts:
                        connection.sendall(part)
                    while forever:
                        connection.sendall(parts[-1])
                        time.sleep(0.05)
                    if parts:
                        connection.recv(1)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Tcp("127.0.0.1", listener.getsockname()[1]), requests
        finally:
            thread.join()


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n"],
        [b"HTTP/1.0 200 OK\r\ncontent-LENGTH: 2\r\nA: b\r\n\r\nxy"],
        [b"HTTP/1.0 2", b"00\r\nA: b\r\nContent-Length: 2\r\n", b"\r\nx", b"y"],
        [b"HTTP/1.0 200 OK\r\nA: b\r\nContent-Length: 0\r\n\r\n"],
    ],
)
def test_answer_is_there_as_soon_as_it_is_complete(parts):
    with answering(*parts) as (address, _):
        answer = get(address, "/", timeout=20)  # the connection is not closed
    assert answer.status in (200, 204)
    assert answer.headers["a"] == "b"


def test_request_has_its_headers():
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (address, requests):
        get(address, "/path", {"Authorization": b"Bearer a"}, timeout=5)
    [request] = requests
    assert request.startswith(b"GET /path HTTP/1.0\r\nHost: 127.0.0.1:")
    assert request.endswith(b"\r\nAuthorization: Bearer a\r\n\r\n")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], Reason.CLOSED),
        ([b"\x15\x03\x01\x00\x02\x02\x50" * 10000], Reason.NOT_HTTP),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], Reason.LATE),  # it waits for us, and we for it
        ([b"HTTP/1.1 200 OK\r\n"], Reason.LATE),
    ],
)
def test_what_is_no_answer_has_a_reason(parts, reason):
    with answering(*parts) as (address, _), pytest.raises(NoAnswer) as caught:
        get(address, "/", timeout=0.5)
    assert caught.value.reason is reason


def test_server_that_goes_on_and_on_ends_with_the_deadline():
    start = time.monotonic()
    with answering(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", forever=True) as (address, _):
        with pytest.raises(NoAnswer) as caught:
            get(address, "/", timeout=0.5)
        assert caught.value.reason is Reason.LATE
        assert time.monotonic() - start < 5


def test_no_more_is_read_than_an_answer_has():
    with answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000) as (address, _):
        assert len(get(address, "/", timeout=5).body) < 200_000


def test_unreachable_addresses_have_a_reason(tmp_path):
    left_behind = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(left_behind))
    file = tmp_path / "file"
    file.touch()
    for address, reason in (
        (Tcp("127.0.0.1", free_port()), Reason.REFUSED),
        (Tcp("no-such-host.invalid", 1), Reason.UNKNOWN_HOST),
        (Unix(tmp_path / "missing"), Reason.MISSING),
        (Unix(file / "below"), Reason.MISSING),
        (Unix(left_behind), Reason.REFUSED),
        (Unix(file), Reason.NO_SOCKET),
        (Unix(Path("/" + "x" * 200)), Reason.UNREACHABLE),
    ):
        with pytest.raises(NoAnswer) as caught:
            get(address, "/", timeout=5)
        assert caught.value.reason is reason, address


def test_full_queue_is_late_and_not_waited_for(tmp_path):
    path = tmp_path / "sock"
    with (
        socket.create_server(str(path), family=socket.AF_UNIX, backlog=0),
        socket.socket(socket.AF_UNIX) as first,
    ):
        first.connect(str(path))
        with pytest.raises(NoAnswer) as caught:
            get(Unix(path), "/", timeout=1)
    assert caught.value.reason is Reason.LATE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
def test_socket_of_another_user_is_forbidden(tmp_path):
    path = tmp_path / "sock"
    with socket.create_server(str(path), family=socket.AF_UNIX):
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(NoAnswer) as caught:
                get(Unix(path), "/", timeout=1)
        finally:
            os.seteuid(0)
    assert caught.value.reason is Reason.FORBIDDEN
