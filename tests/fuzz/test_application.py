"""Whatever strangers write and Synapse answers: one proper answer each time, and no harm done."""

import asyncio
import gc
import json
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.clock import Clock
from tests.fake_synapse import FakeSynapse
from tests.soak import times
from tests.test_tokens import NATIVE, names, native, values, with_checksum
from whoami_router.app import create_app
from whoami_router.settings import Settings

SOURCES = {"cache", "whoami", "stale", "token", "fingerprint", "rejected", "none"}
IDENTIFIER = re.compile(r"sha256:[0-9a-f]{64}|([A-Za-z0-9._~-]|%[0-9A-F]{2})+")

# What may be asked about: anything else could break out of its header.
PROPER = re.compile(rb"Bearer [!-~]{1,8192}")

# Two tokens about which Synapse always tells the truth.
OWNERS = {b"Bearer known-token": "@alice:h", b"Bearer later-token": "@carol:h"}


@contextmanager
def nothing_goes_wrong():
    """Sees that neither the router nor asyncio logs an exception; every record is formatted."""
    seen = []

    class Seen(logging.Handler):
        def emit(self, record):
            record.getMessage()
            if record.exc_info or record.levelno >= logging.ERROR:
                seen.append(self.format(record))

    handler = Seen()
    loggers = [logging.getLogger(name) for name in ("whoami_router", "asyncio")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False  # pytest would keep every record
    try:
        yield
        gc.collect()  # an exception that nobody fetched is logged when its task is collected
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
    assert seen == []


@dataclass
class Answer:
    """One answer of Synapse's; ``failure`` is raised in its place."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    failure: Exception | None = None


class Synapse(httpx.AsyncBaseTransport):
    """Says whose the two tokens are, and to anybody else whatever it is told to say.

    ``improper`` holds the headers that no request should have had.
    """

    def __init__(self):
        self.answer = Answer(401)
        self.improper = []

    async def handle_async_request(self, request):
        answer = self.answer
        authorizations = [
            value for name, value in request.headers.raw if name.lower() == b"authorization"
        ]
        # Without a token the router only asks whether Synapse can be asked.
        self.improper += [each for each in authorizations if not PROPER.fullmatch(each)]
        owner = OWNERS.get(b"".join(authorizations))
        if owner is not None:
            whoami = {"user_id": owner, "device_id": "DEVICE"}
            answer = Answer(body=json.dumps(whoami).encode())
        if answer.failure is not None:
            raise answer.failure
        body = httpx.ByteStream(answer.body)
        return httpx.Response(answer.status, headers=answer.headers, stream=body)


async def ask(app, headers, method="GET"):
    """Return the source and the identifier of the router's answer, which has to be proper."""
    sent = []

    async def send(message):
        sent.append(message)

    # None: the application has no business with the body.
    await app(
        {"type": "http", "method": method, "path": "/resolve", "headers": headers}, None, send
    )
    start, body = sent
    assert start["type"] == "http.response.start"
    assert start["status"] == 204
    assert body.get("body", b"") == b""
    assert not body.get("more_body", False)
    found = {"x-user-identifier": [], "x-user-identifier-source": [], "x-accel-expires": []}
    for name, value in start["headers"]:
        found[name.decode()].append(value.decode("ascii"))
    [source] = found["x-user-identifier-source"]
    assert source in SOURCES
    [edge_ttl] = found["x-accel-expires"]
    assert edge_ttl in (("60", "0") if source in ("whoami", "cache") else ("0",))
    if source in ("none", "rejected"):
        assert found["x-user-identifier"] == []
        return source, None
    [identifier] = found["x-user-identifier"]
    assert IDENTIFIER.fullmatch(identifier)
    assert len(identifier) < 1024
    assert (source == "fingerprint") == identifier.startswith("sha256:")
    return source, identifier


async def background_work():
    """Return when all lookups are over that nobody waits for."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


# What strangers write.

any_text = st.text(st.characters(exclude_categories=()))  # with lone surrogates
line_breaks = st.sampled_from(["\r\nX-Evil: 1", "\n", "\0", "\x7f", "é", "%0d%0a", "\ud800", "😀"])
localparts = any_text | st.builds("alice{}bob".format, line_breaks) | st.just("a" * 10240)
native_tokens = localparts.map(lambda text: native(text.encode(errors="surrogatepass")))
tokens = st.one_of(
    native_tokens,
    native_tokens.map(lambda token: token[:-1] + b"!"),
    st.binary().map(lambda middle: with_checksum(b"syt_" + middle + b"_random")),
    st.from_regex(r"\A[!-~]{1,40}\Z").map(str.encode),
    st.sampled_from([NATIVE, b"a" * 8192, b"a" * 8193, b"a\r\nX-Evil: 1", b"\0", b"_" * 5000]),
    st.binary(min_size=1),
)


@st.composite
def uris(draw):
    """Return any bytes, or a path with parameters that the router reads, in some encoding."""
    if draw(st.booleans()):
        return draw(st.binary())
    parameters = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(["access_token", "user_id", "access%5Ftoken", "since", ""]))
        value = draw(
            tokens
            | st.just(b"@bob:h")
            | localparts.map(lambda text: f"@{text}:h".encode(errors="surrogatepass"))
        )
        encode = draw(
            st.sampled_from(
                [
                    lambda value: value,
                    lambda value: quote(value, safe="").encode(),
                    lambda value: b"".join(b"%%%02x" % byte for byte in value),
                    lambda value: quote(quote(value)).encode(),
                    lambda value: value.decode("latin-1").encode("utf-16"),
                    lambda value: b"%" + value + b"%u0041%zz+",
                ]
            )
        )
        parameters.append(name.encode() + draw(st.sampled_from([b"=", b"", b"=="])) + encode(value))
    prefix = draw(st.sampled_from([b"/sync?", b"//[?", b"?", b"http://[::1/?", b"#?", b"??"]))
    return prefix + draw(st.sampled_from([b"&", b";", b"&&"])).join(parameters)


bearers = st.builds(
    bytes.__add__, st.sampled_from([b"Bearer ", b"Bearer  ", b"bearer ", b"Bearer\t"]), tokens
)
header = st.one_of(
    st.tuples(st.just(b"authorization"), bearers | st.binary()),
    st.tuples(st.sampled_from([b"x-original-uri", b"x-forwarded-uri"]), uris()),
    st.tuples(st.sampled_from([b"x-forwarded-for", b"user-agent", b"cookie"]), st.binary()),
    st.tuples(st.binary(min_size=1).map(bytes.lower), st.binary()),
)
methods = st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "get", "CONNECT"]) | st.text()
requests = st.tuples(
    # Mostly with a token, or not much would come to pass.
    st.lists(header, max_size=6) | st.tuples(st.tuples(st.just(b"authorization"), bearers)),
    methods,
)

# What Synapse answers.

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
user_ids = st.one_of(
    localparts,
    localparts.map("@{}:h".format),
    st.sampled_from(["@bob:h", "alice", "@", "@:h", ":", "", "@a:b:c", "@" + "é" * 250 + ":h"]),
    any_json,
)
whoamis = st.builds(
    lambda user_id, rest: {"user_id": user_id, **rest},
    user_ids,
    st.dictionaries(st.sampled_from(["device_id", "is_guest"]), any_json),
)
bodies = st.one_of(
    whoamis.map(lambda value: json.dumps(value).encode()),
    any_json.map(lambda value: json.dumps(value).encode()),
    st.binary(),
    st.sampled_from([b"[" * 10000, b"9" * 5000, b"x" * 70000, b'{"user_id": "\\ud800"}']),
)
retry_afters = st.one_of(
    st.sampled_from([b"5", b"-1", b"1e9", b"9" * 5000, b"Wed, 21 Oct 2015 07:28:00 GMT", b"\xff"]),
    st.binary(),
)
answers = st.one_of(
    st.builds(
        Answer,
        st.sampled_from([200, 200, 200, 204, 301, 401, 403, 429, 500, 503]) | st.integers(100, 999),
        st.lists(
            st.tuples(st.just(b"retry-after"), retry_afters)
            | st.tuples(
                st.sampled_from([b"location", b"set-cookie", b"content-type", b"content-encoding"]),
                st.binary(),
            ),
            max_size=3,
        ),
        bodies,
    ),
    st.sampled_from(
        [
            httpx.ConnectError("refused"),
            httpx.ReadError(""),
            aiohttp.ServerDisconnectedError(),
            ConnectionResetError(),
            ValueError("header"),
            RuntimeError("defect"),
        ]
    ).map(lambda failure: Answer(failure=failure)),
)
seconds = st.sampled_from([0, 0, 1, 20, 299, 2800, 3601])


def make_app(synapse, clock, **options):
    return create_app(
        Settings(synapse_urls=("http://synapse",), **options),
        transport=lambda _: synapse,
        clock=clock,
    )


async def answered_after_all(app, clock):
    """See that Synapse is asked again, whatever the router has come to think of it."""
    later = [(b"authorization", b"Bearer later-token")]
    clock.now += 1000  # longer than it is ever left alone
    await ask(app, later)
    await background_work()
    assert await ask(app, later) in [("whoami", "carol"), ("cache", "carol")]


@pytest.mark.parametrize("native_tokens", ["whoami", "decode"])
def test_every_answer_is_proper_and_the_next_request_is_answered_right(native_tokens):
    async def run(steps):
        synapse, clock = Synapse(), Clock()
        app = make_app(synapse, clock, native_tokens=native_tokens, rejected_ttl=1)
        known = [(b"authorization", b"Bearer known-token")]
        assert await ask(app, known) == ("whoami", "alice")
        for (headers, method), synapse.answer, passed in steps:
            await ask(app, list(headers), method)
            clock.now += passed
            source, identifier = await ask(app, known)
            assert source in ("cache", "stale", "whoami")
            assert identifier == "alice"
        await answered_after_all(app, clock)
        assert synapse.improper == []

    @settings(max_examples=times(250))
    @given(st.lists(st.tuples(requests, answers, seconds), min_size=1, max_size=8))
    def check(steps):
        asyncio.run(run(steps))

    with nothing_goes_wrong():
        check()


@pytest.mark.parametrize(
    "retry_after",
    [
        b"Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
        b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        b"Mon, 01 Jan 0000 00:00:00 GMT",
        b"Mon, 99 Jan 2024 99:99:99 +9999",
        b"Fri, 31 Dec 9999 23:59:59 -2359",
        b"-1",
        b"9" * 5000,
        "\u00b2\u0663".encode(),
    ],
)
@pytest.mark.parametrize("before", [0, 3], ids=["at once", "to a probe"])
def test_no_wish_to_be_left_alone_is_for_ever(retry_after, before):
    async def run():
        synapse, clock = Synapse(), Clock()
        app = make_app(synapse, clock)
        for number in range(before + 1):
            if number == before:
                synapse.answer = Answer(503, [(b"retry-after", retry_after)])
                clock.now += 1000
            else:
                synapse.answer = Answer(503)
            await ask(app, [(b"authorization", b"Bearer stranger-%d" % number)])
            await background_work()
        await answered_after_all(app, clock)

    with nothing_goes_wrong():
        asyncio.run(run())


@given(st.lists(st.tuples(names, values)))
@example([(b"authorization", b"Bearer " + b"a" * 65536)])
def test_absurd_headers_are_answered(headers):
    app = make_app(httpx.ASGITransport(FakeSynapse()), Clock())
    source, _ = asyncio.run(ask(app, headers))
    assert source in ("none", "rejected", "fingerprint")
