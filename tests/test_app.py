"""The application between a client and a Synapse, ASGI on both sides."""

import asyncio
import json
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response

from tests import logged
from tests.clock import Clock
from tests.fake_synapse import FakeSynapse
from tests.test_tokens import NATIVE
from whoami_router.app import Application, create_app
from whoami_router.defects import Defects
from whoami_router.metrics import Metrics
from whoami_router.settings import Settings, Tcp
from whoami_router.tokens import fingerprint

pytestmark = pytest.mark.anyio

ALICE = {"authorization": "Bearer a"}


@pytest.fixture
def synapse():
    return FakeSynapse(owners={"a": "@alice:example.org"})


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def app(synapse, clock):
    settings = Settings(synapse_urls=("http://synapse",), whoami_timeout=0.2)
    return create_app(settings, transport=lambda _: httpx.ASGITransport(synapse), clock=clock)


@pytest.fixture
async def client(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        yield client


def answer(response):
    assert response.status_code == 204
    assert response.content == b""
    headers = response.headers
    return headers.get("x-user-identifier"), headers["x-user-identifier-source"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "FOO"])
async def test_any_method_is_answered(client, method):
    response = await client.request(method, "/resolve", headers=ALICE)
    assert answer(response) == ("alice", "whoami")


async def test_second_request_is_answered_from_memory(client):
    await client.get("/resolve", headers=ALICE)
    assert answer(await client.get("/resolve", headers=ALICE)) == ("alice", "cache")


async def test_query_token_is_found_in_the_original_uri(client):
    headers = {"x-original-uri": "/_matrix/client/v3/sync?since=s1&access_token=%61"}
    assert answer(await client.get("/resolve", headers=headers)) == ("alice", "whoami")


async def test_no_token_has_no_identifier(client):
    assert answer(await client.get("/resolve")) == (None, "none")


async def test_rejected_token_has_no_identifier(client):
    headers = {"authorization": "Bearer unknown"}
    assert answer(await client.get("/resolve", headers=headers)) == (None, "rejected")


@pytest.mark.parametrize(
    ("user_id", "identifier"),
    [
        ("@Öberg\r\nX-Evil: 1:example.org", "%C3%96berg%0D%0AX-Evil"),
        ("@a\nb:h", "a%0Ab"),
        ("@a b:h", "a%20b"),
        ("@" + "é" * 250 + ":h", "%C3%A9" * 250),
        # What is no user ID names nobody.
        ("@a\0b:h", None),
        ("@" + "a" * 10240 + ":h", None),
        ("alice", None),
        ("alice:h", None),
        ("@alice", None),
        ("@:h", None),
        ("", None),
        ("\ud800", None),
        ("@\ud800:h", None),
    ],
)
async def test_no_user_id_breaks_out_of_the_header(client, synapse, user_id, identifier):
    # By hand: a lone surrogate is no text that a server could encode by itself.
    synapse.answer = Response(json.dumps({"user_id": user_id, "device_id": "D"}))
    response = await client.get("/resolve", headers=ALICE)
    if identifier is None:
        identifier = "sha256:" + fingerprint(b"a").hex()
    assert answer(response)[0] == identifier
    names = {"x-user-identifier", "x-user-identifier-source", "x-accel-expires"}
    assert set(response.headers) == names


async def test_application_service_acts_for_the_user_in_the_query(client, synapse):
    synapse.services["as"] = ["@bridge:h", "@bob:h"]
    for uri, identifier in [
        ("/sync", "bridge"),
        ("/sync?user_id=%40bob%3Ah", "bob"),
        ("/sync?user_id=@stranger:h", "bridge"),
    ]:
        headers = {"authorization": "Bearer as", "x-original-uri": uri}
        assert answer(await client.get("/resolve", headers=headers))[0] == identifier


async def test_nginx_may_repeat_only_what_synapse_said(client, synapse, clock):
    synapse.services["as"] = ["@bridge:h", "@bob:h"]

    async def repeatable(token=None, uri="/sync", source=None):
        headers = {"x-original-uri": uri}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        response = await client.get("/resolve", headers=headers)
        assert answer(response)[1] == source
        return response.headers["x-accel-expires"]

    assert await repeatable("a", source="whoami") == "60"
    assert await repeatable("a", source="cache") == "60"
    assert await repeatable("as", source="whoami") == "60"
    assert await repeatable("as", source="cache") == "60"
    for source in ("whoami", "cache"):
        assert await repeatable("as", "/sync?user_id=@bob:h", source=source) == "60"
    # As the service, because it may not act for this one, or there can be no such user.
    assert await repeatable("as", "/sync?user_id=@stranger:h", source="cache") == "0"
    assert await repeatable("as", "/sync?user_id=stranger", source="cache") == "0"

    assert await repeatable(source="none") == "0"
    for _ in range(2):
        assert await repeatable("unknown", source="rejected") == "0"
    clock.now += 3500  # soon to be refreshed
    assert await repeatable("a", source="cache") == "60"
    synapse.answer = Response(status_code=503)
    clock.now += 3600
    assert await repeatable("a", source="stale") == "0"
    assert await repeatable(NATIVE.decode(), source="token") == "0"
    assert await repeatable("mct_opaque", source="fingerprint") == "0"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (NATIVE, ("alice", "token")),
        (b"mct_opaque", ("sha256:" + fingerprint(b"mct_opaque").hex(), "fingerprint")),
    ],
)
async def test_unavailable_synapse_means_the_fallback(client, synapse, token, expected):
    synapse.answer = Response(status_code=503)
    headers = {"authorization": b"Bearer " + token}
    assert answer(await client.get("/resolve", headers=headers)) == expected


async def test_hung_synapse_means_the_fallback_after_the_timeout(client, synapse):
    synapse.held = True
    async with asyncio.timeout(5):
        assert answer(await client.get("/resolve", headers=ALICE))[1] == "fingerprint"


async def test_synapse_that_is_away_is_left_alone_and_found_again(client, synapse, clock):
    await client.get("/resolve", headers=ALICE)
    synapse.answer = Response(status_code=503)
    clock.now += 3600
    for _ in range(20):
        assert answer(await client.get("/resolve", headers=ALICE)) == ("alice", "stale")
    assert len(synapse.requests) == 4
    synapse.answer = None
    clock.now += 1
    await client.get("/resolve", headers=ALICE)  # lets a probe go, and does not wait for it
    for _ in range(100):
        await asyncio.sleep(0)
    assert answer(await client.get("/resolve", headers=ALICE)) == ("alice", "whoami")


async def test_client_of_the_request_is_the_one_synapse_sees(client, synapse):
    headers = {**ALICE, "x-forwarded-for": "192.0.2.1", "user-agent": "Element/1.0"}
    await client.get("/resolve", headers=headers)
    [request] = synapse.requests
    assert request.headers["x-forwarded-for"] == "192.0.2.1"
    assert request.headers["user-agent"] == "Element/1.0"


async def test_defect_costs_the_identifier_and_not_the_request(caplog):
    class DefectiveResolver:
        def remembered(self, token):
            raise RuntimeError(token)

    metrics = Metrics()
    transport = httpx.ASGITransport(
        Application(DefectiveResolver(), metrics, Starlette(), Settings())
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        response = await client.get("/resolve", headers={"authorization": "Bearer very-secret"})
    assert response.status_code == 204
    assert "x-user-identifier" not in response.headers
    [record] = caplog.records
    assert logged.fields(record)["error"] == "RuntimeError"
    assert "in remembered" in logged.fields(record)["stack"]
    assert "very-secret" not in logged.text(caplog)
    assert metrics.resolves["error"] == 1


async def test_defects_are_a_line_a_minute_however_many_requests_meet_them(caplog):
    clock = Clock()
    defects = Defects(logging.getLogger("whoami_router"), clock=clock)
    for _ in range(3):
        for _ in range(10):
            defects.report("a defect", KeyError("very-secret"))
        clock.now += 60
    assert [logged.fields(record)["times"] for record in caplog.records] == [1, 10, 10]
    assert "very-secret" not in logged.text(caplog)


async def test_connections_are_closed_at_the_end_also_with_a_listener_for_administrators():
    class Closing(httpx.AsyncBaseTransport):
        closed = False

        async def handle_async_request(self, request):
            raise httpx.ConnectError("nobody", request=request)

        async def aclose(self):
            self.closed = True

    closing = Closing()
    app = create_app(Settings(admin_listen=Tcp("localhost", 1)), transport=lambda _: closing)
    async with app.others.router.lifespan_context(app.others):
        assert not closing.closed
    assert closing.closed


async def test_end_in_haste_is_answered_204():
    class CancelledResolver:
        def remembered(self, _):
            raise asyncio.CancelledError

    app = Application(CancelledResolver(), Metrics(), Starlette(), Settings())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        assert (await client.get("/resolve", headers=ALICE)).status_code == 204


async def test_mistaken_path_is_not_found(client):
    assert (await client.get("/resolve/", headers=ALICE)).status_code == 404


async def test_health_needs_no_synapse(client, synapse):
    assert (await client.get("/health")).status_code == 204
    assert synapse.requests == []


async def test_ready_while_synapse_answers(client, synapse):
    assert (await client.get("/ready")).status_code == 204
    synapse.answer = Response(status_code=502)
    response = await client.get("/ready")
    assert response.status_code == 503
    assert "http://synapse answered 502" in response.text


@pytest.mark.parametrize("path", ["/health/", "/metrics/"])
async def test_mistaken_path_of_an_administrator_is_not_found_either(client, path):
    assert (await client.get(path)).status_code == 404
