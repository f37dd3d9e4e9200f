"""No object, exception or log line shows a token, and none is kept."""

import asyncio
import base64
import contextvars
import gc
import inspect
import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, FunctionType, ModuleType
from urllib.parse import quote

import httpx
import pytest
from starlette.responses import Response

from tests.clock import Clock
from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import wait_until
from tests.stack.router import Router
from tests.test_tokens import native
from whoami_router.app import create_app
from whoami_router.resolver import Source
from whoami_router.settings import Settings
from whoami_router.whoami import Caller, Whoami, WhoamiUnavailable

pytestmark = pytest.mark.anyio

# With characters that percent-encoding and base64 change, and in no line of these tests.
NAMES = ("known", "stale", "rejected", "service", "failing", "held", "query", "pending", "native")
TOKENS = {name: f"s3cr3t/{name}+{os.urandom(12).hex()}=~" for name in NAMES}
TOKENS["native"] = native(b"s3cr3t").decode()
UNASKABLE = "s3cr3t\x01" + os.urandom(12).hex()


def forms(token):
    """Return what a token may look like in a text."""
    data = token.encode()
    yield token
    yield repr(token)[1:-1]
    yield quote(token, safe="")
    yield quote(token)
    yield "".join(f"%{byte:02x}" for byte in data)
    yield "".join(f"%{byte:02X}" for byte in data)
    yield data.hex()
    # What is before it shifts base64 by up to two characters; the ends depend on the neighbours.
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * shift + data).decode()[4:-4]


FORMS = frozenset(form for token in (*TOKENS.values(), UNASKABLE) for form in forms(token))


def shown(text):
    """Return the tokens that a text shows."""
    return [form for form in FORMS if form in text]


def described(thing):
    try:
        return repr(thing)
    except Exception as exc:  # noqa: BLE001  (not ours to mend)
        return type(exc).__name__


def reachable(*roots):
    """Return everything that can be reached from these, but what belongs to the whole process."""
    found, queue = {}, list(roots)
    while queue:
        thing = queue.pop()
        if id(thing) in found or isinstance(
            thing,
            (
                *(type, ModuleType, FrameType, logging.Logger, contextvars.Context),
                *(asyncio.AbstractEventLoop, httpx.ASGITransport),
            ),
        ):
            continue
        found[id(thing)] = thing
        if isinstance(thing, FunctionType):
            queue += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__]  # no globals
        else:
            queue += gc.get_referents(thing)
    return list(found.values())


def kept(*roots):
    """Return the tokens in the texts that can be reached from these."""
    texts = []
    for thing in reachable(*roots):
        if isinstance(thing, bytes | bytearray | memoryview):
            texts.append(bytes(thing).decode("latin-1"))
        elif isinstance(thing, str):
            texts.append(thing)
    return [form for text in texts for form in shown(text)]


def state(app):
    """Return the resolver and what asks Synapse."""
    resolver = app.resolver
    return resolver, inspect.getclosurevars(resolver._lookup).nonlocals["lookup"].__self__


@dataclass
class Service:
    app: object
    synapse: FakeSynapse
    clock: Clock
    client: httpx.AsyncClient

    async def resolve(self, token, **headers):
        response = await self.client.get(
            "/resolve", headers={"authorization": f"Bearer {token}", **headers}
        )
        assert response.status_code == 204
        return response.headers["x-user-identifier-source"]


@pytest.fixture
def synapse():
    return FakeSynapse(
        owners={
            TOKENS[name]: "@alice:h" for name in ("known", "stale", "held", "query", "pending")
        },
        services={TOKENS["service"]: ["@bridge:h", "@bob:h"]},
    )


@pytest.fixture(params=["in process", "over TCP"])
async def service(request, synapse):
    @contextmanager
    def in_process():
        yield None

    over_tcp = request.param == "over TCP"
    with served(synapse) if over_tcp else in_process() as address:
        clock = Clock()
        app = create_app(
            Settings(synapse_urls=(f"http://{address or 'synapse'}",), whoami_timeout=5),
            transport=None if over_tcp else lambda _: httpx.ASGITransport(synapse),
            clock=clock,
        )
        async with (
            app.others.router.lifespan_context(app.others),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://router"
            ) as client,
        ):
            yield Service(app, synapse, clock, client)


async def happens(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (in another thread, for which no Event is safe)
            await asyncio.sleep(0.01)


async def use(service):
    """Send requests of every kind; return those that still wait for Synapse."""
    assert await service.resolve(TOKENS["known"]) == Source.WHOAMI
    assert await service.resolve(TOKENS["stale"]) == Source.WHOAMI
    assert await service.resolve(TOKENS["rejected"]) == Source.REJECTED
    uri = {"x-original-uri": "/sync?user_id=@bob:h"}
    assert await service.resolve(TOKENS["service"], **uri) == Source.WHOAMI
    query = {"x-original-uri": f"/sync?access_token={quote(TOKENS['query'])}"}
    response = await service.client.get("/resolve", headers=query)
    assert response.headers["x-user-identifier"] == "alice"
    # From the query, as no header could carry it.
    query = {"x-original-uri": f"/sync?access_token={quote(UNASKABLE)}"}
    response = await service.client.get("/resolve", headers=query)
    assert response.headers["x-user-identifier-source"] == Source.FINGERPRINT
    service.clock.now += 3601
    service.synapse.answer = Response(status_code=500)
    assert await service.resolve(TOKENS["stale"]) == Source.STALE
    assert await service.resolve(TOKENS["failing"]) == Source.FINGERPRINT
    service.synapse.answer = None
    assert await service.resolve(TOKENS["known"]) == Source.WHOAMI
    service.synapse.held = True
    before = len(service.synapse.requests)
    waiting = [
        asyncio.create_task(service.resolve(TOKENS[name])) for name in ("held", "held", "pending")
    ]
    await happens(lambda: len(service.synapse.requests) == before + 2)
    return waiting


async def release(service, waiting):
    service.synapse.held = False
    assert await asyncio.gather(*waiting) == [Source.WHOAMI] * 3


async def test_no_object_shows_a_token(service):
    waiting = await use(service)
    try:
        resolver, whoami = state(service.app)
        ours = [
            thing
            for thing in gc.get_objects()
            if str(type(thing).__module__).startswith("whoami_router")
            or isinstance(thing, asyncio.Future | BaseException)
        ]
        names = {type(thing).__name__ for thing in ours}
        # Or nothing would have been looked at.
        assert {"Resolver", "Whoami", "_Question", "Caller", "_Answer", "Task"} <= names
        for thing in (
            *ours,
            *vars(resolver).values(),
            *vars(whoami).values(),
            *(each for server in whoami._servers for each in vars(server).values()),
        ):
            assert shown(described(thing)) == [], type(thing)
            assert isinstance(thing, BaseException) or shown(str(thing)) == []
    finally:
        await release(service, waiting)


async def test_token_is_held_while_it_is_asked_about_and_no_longer(service):
    waiting = await use(service)
    try:
        found = kept(*state(service.app))
    finally:
        await release(service, waiting)
    assert {TOKENS["held"], TOKENS["pending"]} <= set(found)
    # A lookup lets go of its token a moment after it has answered.
    del waiting
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    assert kept(*state(service.app)) == []


async def test_token_of_a_caller_that_went_away_is_not_kept(service):
    waiting = await use(service)
    for request in waiting:
        request.cancel()
    service.synapse.held = False
    await asyncio.gather(*waiting, return_exceptions=True)
    resolver, _ = state(service.app)
    await happens(lambda: not resolver._in_flight)
    del waiting
    gc.collect()
    assert kept(*state(service.app)) == []


async def test_debug_log_shows_no_token(service, caplog):
    caplog.set_level(logging.DEBUG, logger="whoami_router")
    waiting = await use(service)
    await release(service, waiting)
    records = [record for record in caplog.records if record.name.startswith("whoami_router")]
    assert {record.levelname for record in records} >= {"DEBUG"}
    for record in records:
        assert shown(record.getMessage()) == []
        assert shown(repr(vars(record))) == []


# Failures.


def raw(answer):
    """Return what serves these bytes to anybody who asks, and closes the connection."""

    def serve(connection):
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        connection.sendall(answer(request) if callable(answer) else answer)

    return serve


OK = b"HTTP/1.1 200 OK\r\n"

FAILURES = {
    "closes": raw(b""),
    "status that is none": raw(b"HTTP/1.1 abc\r\n\r\n"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "half a status": raw(b"HTTP/1.1 2"),
    "half the headers": raw(OK + b"Content-Le"),
    "half the body": raw(OK + b'Content-Length: 100\r\n\r\n{"user_id'),
    "header without a colon": raw(OK + b"Broken\r\n\r\n"),
    "long header": raw(OK + b"X: " + b"a" * 100_000 + b"\r\n\r\n"),
    "lengths in conflict": raw(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
    "chunk without a size": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "half a chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{"),
    "error": raw(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
    "overloaded": raw(b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
    "redirect": raw(b"HTTP/1.1 302 No\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"),
    "redirect to nowhere": raw(b"HTTP/1.1 302 No\r\nLocation: x:\r\nContent-Length: 0\r\n\r\n"),
    "HTML": raw(OK + b"Content-Length: 6\r\n\r\n<html>"),
    "no text": raw(OK + b"Content-Length: 2\r\n\r\n\xff\xfe"),
    "too much": raw(OK + b"Content-Length: 100000\r\n\r\n" + b"a" * 100_000),
    "no user": raw(OK + b"Content-Length: 2\r\n\r\n{}"),
    "user that is no text": raw(OK + b'Content-Length: 13\r\n\r\n{"user_id":1}'),
    "unknown encoding": raw(OK + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nxx"),
    "what it was sent, as headers": raw(lambda request: OK + request),
    "what it was sent": raw(lambda request: OK + b"Connection: close\r\n\r\n" + request),
    "what it was sent, as text": raw(
        lambda request: OK + b"Connection: close\r\n\r\n" + json.dumps(request.decode()).encode()
    ),
}

QUOTED = raw(lambda request: b"HTTP/1.1 " + request.partition(b"uthorization: ")[2])


@contextmanager
def failing_server(serve):
    """Serve one connection after the other in a thread; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = False

        def run():
            while True:
                connection, _ = listener.accept()
                if stopped:
                    connection.close()
                    return
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        address = listener.getsockname()
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            stopped = True
            socket.create_connection(address).close()
            thread.join()


def chain(exc):
    """Return the exception and those that it came from."""
    found = {}
    queue = [exc]
    while queue:
        each = queue.pop()
        if each is not None and id(each) not in found:
            found[id(each)] = each
            queue += [each.__cause__, each.__context__]
    return found.values()


async def failures(url, caller=Caller(), user_id=None, timeout=2.0):  # noqa: ASYNC109, B008
    """Return what a failed lookup raises, and with it what it was translated from."""
    raised = []

    whoami = Whoami((url,), timeout=timeout)
    # What a server raises becomes a line of text inside Whoami: it is seen nowhere else.
    [server] = whoami._servers
    ask = server.ask

    async def remembering(*args, **kwargs):
        try:
            return await ask(*args, **kwargs)
        except WhoamiUnavailable as exc:
            raised.append(exc)
            raise

    server.ask = remembering
    try:
        with pytest.raises(WhoamiUnavailable) as last:
            await whoami.owner(TOKENS["failing"].encode(), caller, user_id)
    finally:
        await whoami.aclose()
    assert raised
    return [*raised, last.value]


def assert_shows_no_token(exc, *describe):
    for each in chain(exc):
        for text in ("".join(traceback.format_exception(each)), str(each), *describe):
            assert shown(text if isinstance(text, str) else text(each)) == [], type(each)


def assert_show_no_token(exceptions):
    *translated, last = exceptions
    for exc in translated:
        assert_shows_no_token(exc)
    assert_shows_no_token(last, described)  # all that anybody gets


@pytest.mark.parametrize("serve", [pytest.param(each, id=name) for name, each in FAILURES.items()])
async def test_no_failure_of_synapse_shows_a_token(serve):
    with failing_server(serve) as url:
        assert_show_no_token(await failures(url, user_id="@bob:h"))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "unix:/nowhere/at/all", "http://nowhere.invalid:8008"]
)
async def test_no_failure_to_connect_shows_a_token(url):
    assert_show_no_token(await failures(url))


async def test_no_timeout_shows_a_token():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert_show_no_token(await failures(url, timeout=0.1))


@pytest.mark.parametrize("caller", [Caller(b"a\r\nb", None), Caller(None, b"\0"), Caller(b"\xff")])
async def test_no_header_that_cannot_be_sent_shows_a_token(synapse, caller):
    synapse.answer = Response(status_code=500)
    with served(synapse) as address:
        assert_show_no_token(await failures(f"http://{address}", caller))


async def test_answer_that_quotes_the_token_does_not_get_far():
    with failing_server(QUOTED) as url:
        assert_shows_no_token((await failures(url))[-1], described)


@pytest.mark.parametrize("serve", [FAILURES["no HTTP"], QUOTED], ids=["request", "answer"])
async def test_no_cause_shows_a_token(serve):
    with failing_server(serve) as url:
        for exc in await failures(url):
            assert_shows_no_token(exc, described)


# A whole process.


def send(router, data, *, abort=False):
    """Send bytes on a connection of their own; wait for an answer or the end."""
    host, _, port = router.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as client,
        suppress(ConnectionError),
    ):
        client.sendall(data)
        if not abort:
            client.recv(65536)


def get(token, *lines):
    head = ["GET /resolve HTTP/1.1", "Host: router", f"Authorization: Bearer {token}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


def test_process_shows_no_token_at_debug(tmp_path, synapse, monkeypatch):
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    with (
        served(synapse) as address,
        Router(
            tmp_path, f"http://{address}", "--log-level", "debug", "--whoami-timeout", "1"
        ) as router,
    ):
        everything = [
            *(get(token) for token in TOKENS.values()),
            *(
                get("", f"X-Original-URI: /?access_token={quote(token)}")
                for token in (*TOKENS.values(), UNASKABLE)
            ),
            *(get(TOKENS["service"], f"X-Original-URI: /?user_id={user}") for user in "ab"),
            get(TOKENS["service"], "X-Original-URI: /?user_id=@bob:h"),
            get(TOKENS["known"], "User-Agent: \xff\x0b"),
        ]
        for data in everything:
            send(router, data)
        assert "identifier=alice source=whoami" in router.log_text()
        for data in everything:
            # Damaged in ways that make the router, or what it is built of, complain.
            send(router, data.replace(b"HTTP/1.1", b"HTTP/9.9"))
            send(router, data.replace(b"Bearer ", b"Bearer\0"))
            send(router, data.replace(b"\r\n\r\n", b"\r\nContent-Length: x\r\n\r\n"))
            send(
                router,
                data.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
            )
            send(router, data.replace(b"GET /resolve", b"GET /" + TOKENS["query"].encode()))
            send(router, data[:-3], abort=True)
            send(router, data * 10, abort=True)
        synapse.answer = Response(status_code=500)
        for number in range(5):
            send(router, get(f"{TOKENS['failing']}-{number}"))
        assert "left alone" in router.log_text()
        # The end comes while Synapse is asked, and nobody answers.
        synapse.answer, synapse.held = None, True
        before = len(synapse.requests)

        def asked():
            send(router, get(TOKENS["pending"] + str(time.monotonic())), abort=True)
            return len(synapse.requests) > before

        wait_until(asked, "Synapse is asked again", seconds=20)
        router.send_signal(signal.SIGTERM)
        wait_until(lambda: not router.alive, "the end")
        synapse.held = False
    assert router.returncode == 0
    assert shown(router.log_text()) == []
