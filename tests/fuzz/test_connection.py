"""Raw bytes to a running router: proper answers or a closed connection, and others never notice."""

import re
import select
import socket
import struct
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_synapse import FakeSynapse, served
from tests.soak import times
from tests.stack.process import DidNotHappen
from tests.stack.router import Router

OWNERS = {f"token-{number}": f"@user-{number}:h" for number in range(300)}

# A whole answer; 404 is the one for another path than /resolve.
ANSWER = re.compile(
    rb"HTTP/1\.1 204 No Content\r\nx-user-identifier-source: (?P<source>[a-z]+)\r\n"
    rb"x-accel-expires: (0|60)\r\n"
    rb"(x-user-identifier: (?P<identifier>[A-Za-z0-9._~%:-]+)\r\n)?(connection: close\r\n)?\r\n"
)
NOT_FOUND = re.compile(
    rb"HTTP/1\.1 404 Not Found\r\ncontent-length: 9\r\ncontent-type: text/plain; charset=utf-8\r\n"
    rb"(connection: close\r\n)?\r\n(Not Found)?"  # no body for HEAD
)

MIB = 1024 * 1024


def get(number, *lines, start="GET /resolve HTTP/1.1", end="\r\n"):
    """Return a request with a token of its own; ``lines`` are more of its headers."""
    head = [start, "Host: router", f"Authorization: Bearer token-{number}", *lines]
    return ("".join(line + end for line in head) + end).encode()


def chunked(*chunks):
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Connection:
    """One connection to the router; a context manager.

    ``closed`` says whether the router has closed it, as far as this end has seen.
    """

    def __init__(self, router):
        host, _, port = router.address.rpartition(":")
        self._router = router
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            self.closed = True
        return self

    def abort(self):
        """Close by a reset instead of the usual end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read(self, seconds):
        """Read once; return whether there was something."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(MIB)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionResetError:
            data = b""
        self.closed = not data
        self.received += data
        return bool(data)

    def answers(self, expected=1, *, grammar=(ANSWER,)):
        """Return the identifiers of all answers that came, and no fewer than expected if possible.

        Raises if anything came that is not a whole answer.
        """
        while not self.closed and self.received.count(b"\r\n\r\n") < expected:
            if not self.read(10):
                break
        # By the time that somebody else is answered the router has read what we sent before.
        others_are_answered(self._router)
        while not self.closed and self.read(0):
            pass
        identifiers, position = [], 0
        while position < len(self.received):
            found = [regex.match(self.received, position) for regex in grammar]
            [match] = [match for match in found if match] or [None]
            assert match, self.received[position : position + 200]
            identifier = match.groupdict().get("identifier")
            identifiers.append(identifier and identifier.decode())
            position = match.end()
        return identifiers


def others_are_answered(router, number=0):
    """See that a new connection gets its answer, and that the log still has its first line only."""
    with Connection(router) as ordinary:
        ordinary.send(get(number))
        while not ordinary.received.endswith(b"\r\n\r\n") and ordinary.read(10):
            pass
        match = ANSWER.fullmatch(ordinary.received)
        assert match, ordinary.received
        assert match["identifier"] == b"user-%d" % number
    assert len(router.log_text().splitlines()) == 1, router.log_text()


def memory(router):
    """Return the bytes of memory that the router occupies."""
    [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{router.pid}/status").read_text())
    return int(kilobytes) * 1024


@pytest.fixture(scope="module")
def synapse_url():
    with served(FakeSynapse(owners=OWNERS)) as address:
        yield f"http://{address}"


@pytest.fixture(scope="module")
def router(tmp_path_factory, synapse_url):
    directory = tmp_path_factory.mktemp("router")
    # Nothing but /resolve where the fuzz arrives: an answer is told from another by its grammar.
    with Router(directory, synapse_url, "--admin-listen", f"unix:{directory}/admin") as running:
        for number in range(len(OWNERS)):  # so that no answer waits for a lookup
            others_are_answered(running, number)
        yield running


@pytest.fixture
def other_router(tmp_path, synapse_url):
    """One whose memory no other test has used."""
    with Router(tmp_path, synapse_url, "--admin-listen", f"unix:{tmp_path}/admin") as running:
        others_are_answered(running)
        yield running


@pytest.fixture
def connection(router):
    with Connection(router) as connection:
        yield connection
    others_are_answered(router)


# In each of these, request 2 stands where request 1 has its body, and request 3 is next.

INNER = get(2)
LENGTH = len(INNER)
CHUNKED = chunked(INNER)


def post(*lines, body):
    return get(1, *lines, start="POST /resolve HTTP/1.1") + body + get(3)


TE = "Transfer-Encoding: chunked"

PLAIN = {
    "length": post(f"Content-Length: {LENGTH}", body=INNER),
    "length with zeros": post(f"Content-Length: 000{LENGTH}", body=INNER),
    "length between tabs": post(f"Content-Length:\t{LENGTH}\t", body=INNER),
    "chunked": post(TE, body=CHUNKED),
    "chunked in capitals": post("TRANSFER-ENCODING: CHUNKED", body=CHUNKED),
    "many chunks": post(TE, body=chunked(*(bytes([byte]) for byte in INNER))),
    "chunk extensions": post(TE, body=CHUNKED.replace(b"\r\n", b';a=b;c="d"\r\n', 1)),
    "trailers": post(TE, body=CHUNKED[:-2] + b"X-Trailer: 1\r\nX-Other: 2\r\n\r\n"),
    "expectation": post("Expect: 100-continue", f"Content-Length: {LENGTH}", body=INNER),
    "unknown expectation": post("Expect: the-unexpected", body=b""),
    "blank lines before": b"\r\n\r\n" + post(body=b"\r\n"),
    "tabs around a value": post("X-Some:\tvalue\t", body=b""),
    "empty value": post("X-Some:", body=b""),
    "bytes beyond ASCII in a value": post("X-Some: \xe9\u20ac", body=b""),
    "absolute form": get(1, start="GET http://router/resolve HTTP/1.1") + get(3),
    "absolute form of another host": get(1, start="GET https://x:1/resolve?a HTTP/1.1") + get(3),
    "fragment": get(1, start="GET /resolve#fragment HTTP/1.1") + get(3),
    "encoded path": get(1, start="GET /%72esolve HTTP/1.1") + get(3),
    "method of WebDAV": get(1, start="PROPFIND /resolve HTTP/1.1") + get(3),
    "method with a dash": get(1, start="M-SEARCH /resolve HTTP/1.1") + get(3),
    "no host": get(1).replace(b"Host: router\r\n", b"") + get(3),
}

# The end of the connection is the end of these.
LAST = {
    "close": get(1, "Connection: close") + get(3),
    "HTTP/0.9 in so many words": get(1, start="GET /resolve HTTP/0.9") + get(3),
    "HTTP/1.0": get(1, start="GET /resolve HTTP/1.0") + get(3),
    "HTTP/1.0 kept alive": get(1, "Connection: keep-alive", start="GET /resolve HTTP/1.0") + get(3),
    "HTTP/1.0 chunked": get(1, TE, start="POST /resolve HTTP/1.0") + CHUNKED + get(3),
    "HTTP/2.0 without its preface": get(1, start="GET /resolve HTTP/2.0") + get(3),
}

SMUGGLING = {
    "length and chunked": post(f"Content-Length: {len(CHUNKED)}", TE, body=CHUNKED),
    "chunked and length": post(TE, f"Content-Length: {len(CHUNKED)}", body=CHUNKED),
    "length into the chunks": post("Content-Length: 5", TE, body=b"0\r\n\r\n" + INNER),
    "length repeated": post(*[f"Content-Length: {LENGTH}"] * 2, body=INNER),
    "lengths in conflict": post("Content-Length: 0", f"Content-Length: {LENGTH}", body=INNER),
    "list of lengths": post(f"Content-Length: {LENGTH}, {LENGTH}", body=INNER),
    "negative length": post(f"Content-Length: -{LENGTH}", body=INNER),
    "length with a plus": post(f"Content-Length: +{LENGTH}", body=INNER),
    "hexadecimal length": post(f"Content-Length: {LENGTH:#x}", body=INNER),
    "length beyond 64 bits": post(f"Content-Length: {2**64 + LENGTH}", body=INNER),
    "empty length": post("Content-Length:", body=INNER),
    "space in the length": post("Content-Length: 1 0", body=INNER),
    "space before the colon of the length": post(f"Content-Length : {LENGTH}", body=INNER),
    "chunked twice": post(TE, TE, body=CHUNKED),
    "identity": post("Transfer-Encoding: identity", body=CHUNKED),
    "identity and length": post(
        "Transfer-Encoding: identity", f"Content-Length: {LENGTH}", body=INNER
    ),
    "chunked not last": post("Transfer-Encoding: chunked, identity", body=CHUNKED),
    "nearly chunked": post("Transfer-Encoding: xchunked", body=CHUNKED),
    "chunked with a parameter": post("Transfer-Encoding: chunked;q=1", body=CHUNKED),
    "chunked in quotes": post('Transfer-Encoding: "chunked"', body=CHUNKED),
    "chunked after a vertical tab": post("Transfer-Encoding: \x0bchunked", body=CHUNKED),
    "space before the colon of the encoding": post("Transfer-Encoding : chunked", body=CHUNKED),
    "folded encoding": post("Transfer-Encoding:\r\n chunked", body=CHUNKED),
    "size with a line feed only": post(TE, body=CHUNKED.replace(b"\r\n", b"\n", 1)),
    "extension with a line feed only": post(TE, body=CHUNKED.replace(b"\r\n", b";a\n", 1)),
    "size that is none": post(TE, body=b"zz" + CHUNKED),
    "negative size": post(TE, body=b"-" + CHUNKED),
    "size with a prefix": post(TE, body=b"0x" + CHUNKED),
    "size after a space": post(TE, body=b" " + CHUNKED),
    "size before a space": post(TE, body=CHUNKED.replace(b"\r\n", b" \r\n", 1)),
    "size beyond 64 bits": post(TE, body=b"1" + b"0" * 16 + CHUNKED),
    "chunk longer than its size": post(TE, body=b"1\r\n" + CHUNKED[4:]),
    "length as a trailer": post(
        TE, body=CHUNKED[:-2] + f"Content-Length: {LENGTH}\r\n\r\n".encode()
    ),
}

MALFORMED = {
    "bare line feeds": get(1, end="\n"),
    "bare carriage returns": get(1, end="\r"),
    "folded header": get(1, "X-Some: a\r\n b"),
    "folded token": get(1).replace(b"Bearer ", b"Bearer\r\n "),
    "space before the first header": get(1).replace(b"Host", b" Host"),
    "NUL in a value": get(1, "X-Some: a\0b"),
    "NUL in a token": get(1).replace(b"token-1", b"token-1\0"),
    "NUL in a name": get(1, "X\0: b"),
    "NUL in the target": get(1, start="GET /resolve\0 HTTP/1.1"),
    "carriage return in a value": get(1, "X-Some: a\rb"),
    "space before a colon": get(1, "X-Some : a"),
    "no colon": get(1, "X-Some"),
    "empty name": get(1, ": a"),
    "name beyond ASCII": get(1, "X-\xe9: a"),
    "tabs in the request line": get(1, start="GET\t/resolve\tHTTP/1.1"),
    "space after the version": get(1, start="GET /resolve HTTP/1.1 "),
    "unknown version": get(1, start="GET /resolve HTTP/9.9"),
    "protocol in lower case": get(1, start="GET /resolve http/1.1"),
    "HTTP/0.9": b"GET /resolve\r\n" + get(1),
    "method in lower case": get(1, start="get /resolve HTTP/1.1"),
    "unknown method": get(1, start="ANYTHING /resolve HTTP/1.1"),
    "no method": get(1, start="/resolve HTTP/1.1"),
    "no target": get(1, start="GET HTTP/1.1"),
    "target beyond ASCII": get(1, start="GET /resolve?\xe9 HTTP/1.1"),
    "target that is no URL": get(1, start="GET http://[/resolve HTTP/1.1"),
    "absolute form without a path": get(1, start="GET http://router HTTP/1.1"),
    "authority form": get(1, start="CONNECT router:80 HTTP/1.1"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": bytes.fromhex("16030100f8010000f40303") + bytes(range(256)),
    "an answer": b"HTTP/1.1 204 No Content\r\n\r\n",
    "zeros": bytes(1000),
}

UPGRADES = {
    "websocket": get(
        1,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "h2c": get(1, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"),
    "CONNECT": get(1, start="CONNECT /resolve HTTP/1.1"),
}


def table(cases):
    return [pytest.param(data, id=name) for name, data in cases.items()]


@pytest.mark.parametrize("data", table(PLAIN))
def test_requests_with_odd_bodies_headers_and_targets_are_answered_in_turn(connection, data):
    assert connection.send(data).answers(2) == ["user-1", "user-3"]
    assert not connection.closed


@pytest.mark.parametrize("data", table(LAST))
def test_nothing_is_answered_after_the_last_request(connection, data):
    assert connection.send(data).answers() == ["user-1"]
    assert connection.closed


@pytest.mark.parametrize("data", table(SMUGGLING | MALFORMED))
def test_what_is_no_http_closes_the_connection_without_a_word(connection, data):
    connection.send(data)
    assert connection.answers() == []
    assert connection.closed


@pytest.mark.parametrize("data", table(MALFORMED))
def test_what_is_no_http_takes_no_answer_of_another_request(connection, data):
    """Request 1 may be answered before the rest is read, or not at all."""
    connection.send(get(2))
    assert connection.answers() == ["user-2"]
    connection.send(data + get(3))
    assert connection.answers(2) == ["user-2"]
    assert connection.closed


@pytest.mark.parametrize("more", [b"", get(3), b"\0" * 100], ids=["alone", "HTTP", "no HTTP"])
@pytest.mark.parametrize("data", table(UPGRADES))
def test_nothing_is_answered_after_an_upgrade(connection, data, more):
    """Or it could be taken for the answer to another request: what follows is no HTTP."""
    assert connection.send(data + more).answers(2) == ["user-1"]
    assert connection.closed


def test_trailer_is_no_header(connection):
    trailer = b"X-Trailer: 1\r\nAuthorization: Bearer token-2\r\n\r\n"
    connection.send(post(TE, body=CHUNKED[:-2] + trailer))
    assert connection.answers(2) == ["user-1", "user-3"]


@pytest.mark.parametrize("target", ["*", "//resolve", "/resolve/", "/%2fresolve", "/RESOLVE"])
def test_other_targets_do_not_disturb_the_next_request(connection, target):
    connection.send(get(1, start=f"OPTIONS {target} HTTP/1.1") + get(3))
    assert connection.answers(2, grammar=(ANSWER, NOT_FOUND)) == [None, "user-3"]


# Slow and truncated.

WHOLE = {
    "headers": get(1),
    "length": get(1, "Content-Length: 5", start="POST /resolve HTTP/1.1") + b"hello",
    "chunked": get(1, TE, start="POST /resolve HTTP/1.1") + chunked(b"hello", b"world"),
}


@pytest.mark.parametrize("data", table(WHOLE))
def test_request_may_come_byte_by_byte(connection, data):
    for position in range(len(data)):
        connection.send(data[position : position + 1])
    connection.send(get(2))
    assert connection.answers(2) == ["user-1", "user-2"]


@pytest.mark.parametrize("data", table(WHOLE))
@pytest.mark.parametrize("end", ["continued", "closed", "half-closed", "aborted"])
def test_request_may_break_off_at_any_place(router, data, end):
    for position in range(1, len(data)):
        with Connection(router) as connection:
            connection.send(data[:position])
            # An answer needs the headers and not the body.
            answered = ["user-1"] if b"\r\n\r\n" in data[:position] else []
            assert connection.answers(len(answered)) == answered
            if end == "continued":
                connection.send(data[position:] + get(2))
                assert connection.answers(2) == ["user-1", "user-2"]
            elif end == "half-closed":
                connection.socket.shutdown(socket.SHUT_WR)
                assert not connection.read(10)
                assert connection.closed
            elif end == "aborted":
                connection.abort()
    others_are_answered(router)


# Huge.


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
def test_headers_as_long_as_nginx_passes_them_on_are_answered(router, connection, pieces):
    data = get(1, *(f"X-Long-{line}: {'a' * 8192}" for line in range(4)))
    for _ in range(3):
        for start in range(0, len(data), 8192 if pieces else len(data)):
            connection.send(data[start:][: 8192 if pieces else None])
            others_are_answered(router)
    assert connection.answers(3) == ["user-1"] * 3
    assert not connection.closed


@pytest.mark.parametrize("data", [b"X: " + b"a" * 4 * MIB, b"X: a\r\n" * MIB], ids=["one", "many"])
def test_megabytes_of_headers_close_the_connection(connection, data):
    connection.send(get(1)[:-2] + data + b"\r\n\r\n" + get(3))
    assert connection.answers() == []
    assert connection.closed


@pytest.mark.parametrize("framing", ["length", "chunked", "many chunks"])
def test_megabytes_of_body_are_passed_over(connection, framing):
    body = b"a" * 4 * MIB
    if framing == "length":
        connection.send(get(1, f"Content-Length: {len(body)}") + body)
    elif framing == "chunked":
        connection.send(get(1, TE) + chunked(body))
    else:
        connection.send(get(1, TE) + chunked(*[body[:512]] * 4096))
    assert connection.send(get(3)).answers(2) == ["user-1", "user-3"]
    assert not connection.closed


def test_connection_is_good_for_any_number_of_requests(connection):
    for _ in range(1000):
        connection.send(get(1))
        assert connection.read(10)
    assert connection.answers(1000) == ["user-1"] * 1000


ENDLESS = {
    "blank lines": (b"", b"\r\n"),
    "target": (b"GET /", b"a"),
    "name": (b"GET /resolve HTTP/1.1\r\nX", b"a"),
    "value": (b"GET /resolve HTTP/1.1\r\nX: ", b"a"),
    "headers": (b"GET /resolve HTTP/1.1\r\n", b"X: a\r\n"),
    "spaces": (b"GET /resolve HTTP/1.1\r\nX:", b" "),
    "size of a chunk": (get(1, TE), b"0"),
    "extension of a chunk": (get(1, TE) + b"1;", b"a"),
    "trailer": (get(1, TE) + b"0\r\nX: ", b"a"),
    "trailers": (get(1, TE) + b"0\r\n", b"X: a\r\n"),
    "headers of the second request": (get(1) + b"GET /resolve HTTP/1.1\r\n", b"X: a\r\n"),
    "trailers of the second request": (
        get(1, TE) + chunked(b"a") + get(1, TE) + b"0\r\n",
        b"X:\r\n",
    ),
}


@pytest.mark.parametrize(
    ("start", "more"), [pytest.param(*case, id=name) for name, case in ENDLESS.items()]
)
def test_what_has_no_end_is_given_up(connection, start, more):
    connection.send(start)
    sent = 0
    while not connection.closed:
        connection.send(more * (8192 // len(more)))
        sent += 8192
        assert sent <= 256 * 1024
        answers = connection.answers(0)
        assert answers == ["user-1"] * len(answers)


@pytest.mark.parametrize("line", [b"X: " + b"a" * 8000 + b"\r\n", b"a:\r\n"], ids=["long", "short"])
def test_hundreds_of_connections_without_an_end_are_little_memory(other_router, line):
    block = line * (16 * 1024 // len(line))
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(other_router)) for _ in range(200)]
        for connection in connections:
            connection.send(b"GET /resolve HTTP/1.1\r\n")
        others_are_answered(other_router)
        before, most = memory(other_router), 0
        for _ in range(6):
            for connection in connections:
                connection.send(block)
            others_are_answered(other_router)
            most = max(most, memory(other_router))
        for connection in connections:
            assert connection.answers(1) == []
            assert connection.closed
    assert most - before < 50 * MIB


# Pipelines.


def test_answers_in_a_pipeline_are_in_the_order_of_the_requests(connection):
    numbers = [*range(300), *reversed(range(300))]
    connection.send(b"".join(map(get, numbers)))
    assert connection.answers(600) == [f"user-{number}" for number in numbers]


def test_requests_without_a_token_in_a_pipeline_get_nobodys_identifier(connection):
    bare = b"GET /resolve HTTP/1.1\r\nHost: router\r\n\r\n"
    connection.send(b"".join(get(number) + bare for number in range(200)))
    expected = [each for number in range(200) for each in (f"user-{number}", None)]
    assert connection.answers(400) == expected


@pytest.mark.parametrize("place", [0, 1, 150, 298])
@pytest.mark.parametrize("data", [MALFORMED["zeros"], SMUGGLING["length and chunked"]])
def test_pipeline_ends_at_what_is_no_http(connection, place, data):
    before = [get(number) for number in range(place)]
    connection.send(b"".join(before) + data + get(299) * 10)
    answers = connection.answers(300)
    assert answers == [f"user-{number}" for number in range(len(answers))]
    assert len(answers) <= place
    assert connection.closed


def test_lookups_in_a_pipeline_keep_the_order(tmp_path, synapse_url):
    """Answers that wait for Synapse are not overtaken by those from memory."""
    with Router(tmp_path, synapse_url) as router, Connection(router) as connection:
        others_are_answered(router)
        numbers = [number for pair in zip([0] * 99, range(1, 100), strict=True) for number in pair]
        connection.send(b"".join(map(get, numbers)))
        assert connection.answers(198) == [f"user-{number}" for number in numbers]


# Those who do not read, or do not write.


def test_silent_connections_hold_nobody_up(router):
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Connection(router))
        others_are_answered(router)


def pipelined_until_blocked(connection, limit, *, reading):
    """Send requests until the router takes no more for a second, or the limit is reached."""
    data = memoryview(b"GET /resolve HTTP/1.1\r\n\r\n" * limit)
    connection.socket.settimeout(0)
    deadline = time.monotonic() + 30
    with suppress(ConnectionError):  # the router may have enough of it
        while data:
            if time.monotonic() > deadline:
                raise DidNotHappen("all is sent, or the router takes no more")
            readable, writable, _ = select.select(
                [connection.socket] if reading else [], [connection.socket], [], 1
            )
            if readable:
                connection.socket.recv(MIB)
            if writable:
                data = data[connection.socket.send(data[: 64 * 1024]) :]
            if not readable and not writable:
                break


def test_client_that_reads_nothing_holds_nobody_up(router):
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(Connection(router))
            pipelined_until_blocked(connection, 20_000, reading=False)
            others_are_answered(router)


@pytest.mark.parametrize("reading", [False, True], ids=["reads nothing", "reads"])
def test_long_pipeline_is_little_memory(other_router, reading):
    before = memory(other_router)
    with Connection(other_router) as connection:
        pipelined_until_blocked(connection, 200_000, reading=reading)
        others_are_answered(other_router)
        assert memory(other_router) - before < 50 * MIB


# Mutations.

SEEDS = [
    get(1) + get(2),
    post(f"Content-Length: {LENGTH}", body=INNER),
    post(TE, body=CHUNKED),
    UPGRADES["websocket"] + get(3),
    get(1, "Expect: 100-continue", "Content-Length: 5") + b"hello" + get(3),
]
FRAGMENTS = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"0",
        b"-",
        b",",
        b"%",
        b"\xff",
    ),
    *(b"Content-Length: 0\r\n", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"HTTP/1.0",
        b"0\r\n\r\n",
    ),
    *(b"Authorization: Bearer token-4\r\n", b"X-Original-URI: /?access_token=token-5\r\n", get(6)),
]


@st.composite
def mutations(draw):
    """Return requests, damaged in some places, in pieces."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 30))
        replacement = draw(
            st.sampled_from(FRAGMENTS) | st.binary(max_size=3) | st.just(data[start:end] * 2)
        )
        data = data[:start] + replacement + data[end:]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@settings(max_examples=times(300))
@given(mutations())
def test_damaged_requests_get_proper_answers_or_none(router, pieces):
    with Connection(router) as connection:
        for piece in pieces:
            connection.send(piece)
            connection.answers(0, grammar=(ANSWER, NOT_FOUND))
