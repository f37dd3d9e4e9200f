"""The real transport against a fake Synapse, and against servers that answer nonsense."""

import asyncio
import gzip
import socket
from contextlib import asynccontextmanager

import aiohttp
import httpx
import pytest
from starlette.responses import Response

from tests.fake_synapse import FakeSynapse, served
from whoami_router.server import Request
from whoami_router.whoami import Caller, Owner, Whoami, WhoamiUnavailable

pytestmark = pytest.mark.anyio

CALLER = Caller(b"192.0.2.1", b"Element/1.0")
ALICE = b'{"user_id": "@alice:h", "device_id": "DEVICE"}'


@pytest.fixture
def synapse():
    return FakeSynapse(owners={"a": "@alice:example.org"})


@asynccontextmanager
async def asking(*urls, seconds=5.0, transport=None):
    whoami = Whoami(urls, timeout=seconds, transport=transport)
    try:
        yield whoami
    finally:
        await whoami.aclose()


@asynccontextmanager
async def raw_server(answer, path=None):
    """Run ``answer(reader, writer)`` for each connection; yield the server's URL."""
    connections = set()

    async def handle(reader, writer):
        connections.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client gave up, or the test is over
        finally:
            writer.close()

    if path is None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
    else:
        server = await asyncio.start_unix_server(handle, path)
        url = f"unix:{path}"
    async with server:
        yield url
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)


def answering(data):
    async def answer(_, writer):
        writer.write(data)
        await writer.drain()

    return answer


def http(body, status="200 OK", length=None):
    length = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), length, body)


async def test_owner_is_named(synapse):
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            assert await whoami.owner(b"a", CALLER) == Owner("@alice:example.org")


async def test_rejected_token_has_no_owner(synapse):
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            assert await whoami.owner(b"unknown", CALLER) is None


async def test_forbidden_token_has_no_owner(synapse):
    synapse.answer = Response(status_code=403)
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            assert await whoami.owner(b"a", CALLER) is None


async def test_unix_socket_is_asked_alike(tmp_path):
    answer = answering(http(b'{"user_id": "@alice:example.org", "device_id": "D"}'))
    async with raw_server(answer, tmp_path / "synapse.sock") as url, asking(url) as whoami:
        assert await whoami.owner(b"a", CALLER) == Owner("@alice:example.org")


async def test_synapse_sees_the_client_and_not_the_router(synapse):
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            await whoami.owner(b"a", CALLER)
    [request] = synapse.requests
    assert request.headers["x-forwarded-for"] == "192.0.2.1"
    assert request.headers["x-forwarded-proto"] == "https"
    assert request.headers["user-agent"] == "Element/1.0"
    assert request.headers["accept-encoding"] == "identity"


async def test_client_without_user_agent_is_not_given_one(synapse):
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            await whoami.owner(b"a", Caller())
    [request] = synapse.requests
    assert request.headers.get("user-agent", "") == ""
    assert "x-forwarded-for" not in request.headers


async def test_lookups_share_kept_alive_connections(synapse):
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            for _ in range(20):
                await whoami.owner(b"a", CALLER)
    assert len({request.client.port for request in synapse.requests}) == 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_no_lookup_waits_for_another(kind, tmp_path):
    everybody_asks = asyncio.Event()
    asking_now = 0

    async def answer(reader, writer):
        nonlocal asking_now
        asking_now += 1
        if asking_now == 150:  # more than aiohttp opens by default
            everybody_asks.set()
        await everybody_asks.wait()
        await answering(http(ALICE))(reader, writer)

    path = tmp_path / "synapse.sock" if kind == "unix" else None
    async with raw_server(answer, path) as url, asking(url, seconds=20) as whoami:
        owners = await asyncio.gather(*(whoami.owner(b"a", CALLER) for _ in range(150)))
    assert owners == [Owner("@alice:h")] * 150


async def test_connection_that_synapse_closed_meanwhile_costs_no_answer():
    async def answer(reader, writer):
        await answering(http(ALICE))(reader, writer)  # and close

    async with raw_server(answer) as url, asking(url) as whoami:
        for _ in range(20):
            assert await whoami.owner(b"a", CALLER) == Owner("@alice:h")


async def test_cookie_set_for_one_user_is_not_sent_for_another(synapse):
    synapse.answer = Response('{"user_id": "@alice:h"}', headers={"set-cookie": "session=alice"})
    with served(synapse) as address:
        # By name: aiohttp keeps no cookie for an address, but would for a host.
        async with asking(f"http://{address}".replace("127.0.0.1", "localhost")) as whoami:
            await whoami.owner(b"a", CALLER)
            await whoami.owner(b"b", CALLER)
    assert all("cookie" not in request.headers for request in synapse.requests)


async def test_environment_cannot_send_tokens_through_a_proxy(synapse, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            assert await whoami.owner(b"a", CALLER) == Owner("@alice:example.org")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00" * 1000, id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="half a header"),
        pytest.param(http(b'{"user_id"', length=50), id="half a body"),
        pytest.param(http(b"<html>"), id="HTML"),
        pytest.param(http(b'"text"'), id="no object"),
        pytest.param(http(b"[" * 60000), id="deep nesting"),
        pytest.param(http(b"{}"), id="no user_id"),
        pytest.param(http(b'{"user_id": 1}'), id="user_id is no text"),
        pytest.param(http(b'{"user_id": "\xff"}'), id="no UTF-8"),
        pytest.param(http(b" " * 70000 + b'{"user_id": "@a:h"}'), id="too long"),
        pytest.param(http(b"", "500 Oops"), id="500"),
        pytest.param(http(b"", "429 Too Many Requests"), id="429"),
        pytest.param(http(b"", "404 Not Found"), id="404"),
        pytest.param(http(b"", "302 Found\r\nLocation: /elsewhere"), id="redirect"),
        pytest.param(http(b"", "204 No Content"), id="204"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100000 + b"\r\n\r\n", id="huge header"),
        pytest.param(
            http(gzip.compress(b'{"user_id": "@a:h"}'), "200 OK\r\nContent-Encoding: gzip"),
            id="compressed unasked",
        ),
    ],
)
async def test_nonsense_is_unavailable_and_quotes_no_token(data):
    async with raw_server(answering(data)) as url, asking(url) as whoami:
        with pytest.raises(WhoamiUnavailable) as caught:
            await whoami.owner(b"very-secret", CALLER)
    exc = caught.value
    while exc is not None:
        assert "very-secret" not in f"{exc} {exc!r}"
        exc = exc.__cause__


async def test_nobody_listening_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with asking(f"http://127.0.0.1:{port}") as whoami:
        with pytest.raises(WhoamiUnavailable, match=f"{port} .*Connection refused"):
            await whoami.owner(b"a", CALLER)


async def test_no_unix_socket_is_unavailable(tmp_path):
    async with asking(f"unix:{tmp_path}/missing") as whoami:
        with pytest.raises(WhoamiUnavailable, match=r"missing .*No such file"):
            await whoami.owner(b"a", CALLER)


async def test_unknown_host_is_unavailable():
    async with asking("http://nowhere.invalid") as whoami:
        with pytest.raises(WhoamiUnavailable, match=r"nowhere.invalid .*(not known|resolution)"):
            await whoami.owner(b"a", CALLER)


async def hang(_reader, _writer):
    await asyncio.sleep(60)


async def drip(_, writer):
    for byte in http(ALICE):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("answer", [hang, drip])
async def test_slow_answer_is_unavailable_within_the_timeout(answer):
    async with raw_server(answer) as url, asking(url, seconds=0.2) as whoami, asyncio.timeout(5):
        with pytest.raises(WhoamiUnavailable, match="in time"):
            await whoami.owner(b"a", CALLER)


async def test_timeout_bounds_all_urls_together():
    async with (
        raw_server(hang) as first,
        raw_server(hang) as second,
        asking(first, second, seconds=2) as whoami,
        asyncio.timeout(3.5),
    ):
        with pytest.raises(WhoamiUnavailable, match=r"in time.*in time"):
            await whoami.owner(b"a", CALLER)


@pytest.mark.parametrize(
    "error", [OSError(), ValueError(), aiohttp.ClientError(), httpx.HTTPError(""), AssertionError()]
)
async def test_every_error_of_a_transport_is_unavailable(error):
    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _request):
            raise error

    async with asking("http://synapse", transport=lambda _: Broken()) as whoami:
        with pytest.raises(WhoamiUnavailable, match=type(error).__name__):
            await whoami.owner(b"a", CALLER)


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (b"Element/1.0 (X11; Linux)", b"Element/1.0 (X11; Linux)"),
        ("Элемент/1.0".encode(), "Элемент/1.0".encode()),
        (b"1\r\nX-Evil: 1\0\t", b"1X-Evil: 1"),
        (b"a\xff\xfeb", b"ab"),
        (b"\xff" * 8192, b""),
        (b"a" * 65536, b"a" * 1024),
    ],
)
async def test_synapse_gets_what_it_will_take_of_the_clients_headers(synapse, sent, passed_on):
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            assert await whoami.owner(b"a", Caller(sent, sent)) == Owner("@alice:example.org")
    [request] = synapse.requests
    headers = dict(request.scope["headers"])
    assert headers[b"x-forwarded-for"] == passed_on
    assert headers[b"user-agent"] == passed_on


@pytest.mark.parametrize(
    "first",
    [hang, answering(b""), answering(http(b"", "503 Later")), answering(http(b"<html>"))],
    ids=["hangs", "closes", "fails", "answers nonsense"],
)
async def test_second_url_answers_when_the_first_does_not(synapse, first):
    with served(synapse) as address:
        async with (
            raw_server(first) as broken,
            asking(broken, f"http://{address}", seconds=2) as whoami,
        ):
            assert await whoami.owner(b"a", CALLER) == Owner("@alice:example.org")


async def test_rejection_by_the_first_url_is_final(synapse):
    unused = FakeSynapse(owners={"unknown": "@eve:example.org"})
    with served(synapse) as first, served(unused) as second:
        async with asking(f"http://{first}", f"http://{second}") as whoami:
            assert await whoami.owner(b"unknown", CALLER) is None
    assert unused.requests == []


async def test_check_asks_without_a_token(synapse):
    async with asking("http://synapse", transport=lambda _: httpx.ASGITransport(synapse)) as whoami:
        await whoami.check()
    [request] = synapse.requests
    assert "authorization" not in request.headers


async def test_token_of_an_application_service_has_no_device(synapse):
    synapse.services["as"] = ["@bridge:h", "@bridged ä&=:h"]
    with served(synapse) as address:
        async with asking(f"http://{address}") as whoami:
            assert await whoami.owner(b"as", CALLER) == Owner("@bridge:h", has_device=False)
            for user_id in synapse.services["as"]:
                owner = await whoami.owner(b"as", CALLER, user_id)
                assert owner == Owner(user_id, has_device=False)
            assert await whoami.owner(b"as", CALLER, "@other:h") is None


async def test_request_does_not_show_its_token():
    request = Request({b"authorization": b"Bearer very-secret"}, {})
    assert "very-secret" not in repr(request)
