"""What is counted, and that it costs little and tells nobody's name."""

import asyncio
import math
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from tests.clock import Clock
from tests.fake_synapse import FakeSynapse
from tests.test_tokens import NATIVE
from whoami_router import __version__
from whoami_router.app import create_app
from whoami_router.metrics import Metrics
from whoami_router.resolver import Source
from whoami_router.settings import Settings
from whoami_router.whoami import LeftAlone, Owner, TokenUnanswerable, WhoamiUnavailable

pytestmark = pytest.mark.anyio

SETTINGS = Settings(cache_size=3, rejected_size=2, max_lookups=4)
SOURCES = {*Source, "error"}
OUTCOMES = {"owner", "rejected", "unavailable", "unanswerable", "left_alone", "error"}


def samples(text):
    """Return every sample: its name, with its labels, to its value."""
    return {
        sample.name + "".join(f" {label}" for label in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def synapse():
    return FakeSynapse(owners={f"token-{number}": f"@user-{number}:h" for number in range(10)})


@pytest.fixture
async def client(synapse, clock):
    app = create_app(SETTINGS, transport=lambda _: httpx.ASGITransport(synapse), clock=clock)
    async with (
        app.admin.router.lifespan_context(app.admin),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client,
    ):
        yield client


async def resolve(client, token):
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return await client.get("/resolve", headers=headers)


async def read(client):
    return samples((await client.get("/metrics")).text)


async def test_everything_is_there_from_the_start_so_that_a_rate_sees_the_first_one(client):
    found = await read(client)
    assert {name for name in found if name.startswith("whoami_router_resolves")} == {
        f"whoami_router_resolves_total {source}" for source in SOURCES
    }
    assert {name for name in found if name.startswith("whoami_router_lookups_total")} == {
        f"whoami_router_lookups_total {outcome}" for outcome in OUTCOMES
    }
    started = {name: value for name, value in found.items() if name.startswith("whoami_router_")}
    limits = {
        f"whoami_router_build_info {__version__}": 1,
        "whoami_router_lookups_limit": 4,
        "whoami_router_remembered_owners_limit": 3,
        "whoami_router_remembered_rejections_limit": 2,
    }
    assert {name: value for name, value in started.items() if value} == limits
    assert {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    } <= found.keys()
    assert any(name.startswith("python_info") for name in found)
    assert any(name.startswith("python_gc_") for name in found)
    bounds = [
        name.split()[1]
        for name in found
        if name.startswith("whoami_router_lookup_duration_seconds_bucket")
    ]
    steps = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, math.inf)
    assert tuple(map(float, bounds)) == steps


async def test_answers_are_counted_by_their_source(client, synapse, clock):
    for token in (None, "token-1", "token-1", "token-1", "unknown", "unknown"):
        await resolve(client, token)
    clock.now += SETTINGS.cache_ttl + 1
    synapse.answer = Response(status_code=500)
    for token in ("token-1", NATIVE.decode(), "opaque"):
        await resolve(client, token)
    found = await read(client)
    assert {source: found[f"whoami_router_resolves_total {source}"] for source in SOURCES} == {
        "none": 1,
        "whoami": 1,
        "cache": 2,
        "rejected": 2,
        "stale": 1,
        "token": 1,
        "fingerprint": 1,
        "error": 0,
    }


async def test_every_answer_is_counted_once(client):
    sent = 0
    for token in ("token-1", "token-2", "token-1", None, "unknown", "a b", "token-1"):
        await resolve(client, token)
        sent += 1
    found = await read(client)
    assert sum(found[f"whoami_router_resolves_total {source}"] for source in SOURCES) == sent


async def test_memory_and_what_had_to_make_room(client):
    for number in range(5):
        await resolve(client, f"token-{number}")
        await resolve(client, f"unknown-{number}")
    found = await read(client)
    assert found["whoami_router_remembered_owners"] == 3
    assert found["whoami_router_remembered_owners_evicted_total"] == 2
    assert found["whoami_router_remembered_rejections"] == 2
    assert found["whoami_router_remembered_rejections_evicted_total"] == 3


async def test_lookups_in_flight_and_shed(client, synapse):
    synapse.held = True
    waiting = [asyncio.create_task(resolve(client, f"token-{number}")) for number in range(4)]
    async with asyncio.timeout(5):
        while len(synapse.requests) < 4:  # noqa: ASYNC110  (the stand-in has no Event)
            await asyncio.sleep(0)
    for _ in range(3):
        await resolve(client, "token-9")
    found = await read(client)
    assert found["whoami_router_lookups_in_flight"] == 4
    assert found["whoami_router_lookups_shed_total"] == 3
    synapse.held = False
    await asyncio.gather(*waiting)
    found = await read(client)
    assert found["whoami_router_lookups_in_flight"] == 0


async def test_synapse_that_goes_and_comes_back(client, synapse, clock):
    url = "http://127.0.0.1:8008"
    synapse.answer = Response(status_code=503)
    for number in range(4):
        await resolve(client, f"token-{number}")
    found = await read(client)
    assert found[f"whoami_router_synapse_away {url}"] == 1
    assert found[f"whoami_router_synapse_losses_total {url}"] == 1
    assert found["whoami_router_lookups_total left_alone"] >= 1
    synapse.answer = None
    clock.now += 60
    async with asyncio.timeout(5):
        while found[f"whoami_router_synapse_away {url}"]:
            await resolve(client, "token-1")
            found = await read(client)
    assert found[f"whoami_router_synapse_losses_total {url}"] == 1


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ("owner", Owner("@alice:h")),
        ("rejected", None),
        ("unavailable", WhoamiUnavailable("away")),
        ("unanswerable", TokenUnanswerable("500")),
        ("left_alone", LeftAlone("rests")),
        ("error", RuntimeError("a defect")),
        ("error", asyncio.CancelledError()),
    ],
)
async def test_lookup_passes_through_and_is_counted_and_timed(outcome, result):
    clock = Clock()
    metrics = Metrics(clock=clock)

    async def lookup(token, caller, user_id=None):
        assert (token, caller, user_id) == (b"a", None, "@bob:h")
        clock.now += 0.02
        if isinstance(result, BaseException):
            raise result
        return result

    timed = metrics.timed(lookup)
    if isinstance(result, BaseException):
        with pytest.raises(type(result)) as raised:
            await timed(b"a", None, "@bob:h")
        assert raised.value is result
    else:
        assert await timed(b"a", None, "@bob:h") is result
    found = samples(metrics.exposition("")[0].decode())
    counted = {each: found[f"whoami_router_lookups_total {each}"] for each in OUTCOMES}
    assert counted == dict.fromkeys(OUTCOMES, 0) | {outcome: 1}
    asked = outcome != "left_alone"
    assert found["whoami_router_lookup_duration_seconds_count"] == asked
    assert math.isclose(found["whoami_router_lookup_duration_seconds_sum"], 0.02 * asked)
    assert found["whoami_router_lookup_duration_seconds_bucket 0.025"] == asked
    assert found["whoami_router_lookup_duration_seconds_bucket 0.01"] == 0


async def test_names_and_units_are_as_prometheus_wants_them(client):
    await resolve(client, "token-1")
    text = (await client.get("/metrics")).text
    checked = subprocess.run(  # noqa: ASYNC221  (nothing else is to happen meanwhile)
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    ours = [line for line in checked.stderr.splitlines() if line.startswith("whoami_router")]
    assert (checked.returncode, ours) == (0, [])


async def test_no_label_holds_a_user_or_a_token(client, synapse):
    for token in ("token-1", "unknown", NATIVE.decode()):
        await resolve(client, token)
    synapse.answer = Response(status_code=500)
    for _ in range(5):
        await resolve(client, "failing")
    text = (await client.get("/metrics")).text
    for secret in ("user-1", "token-1", "unknown", NATIVE.decode(), "failing"):
        assert secret not in text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain;version=x.y", "text/plain"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text"),
    ],
)
async def test_media_type_is_the_one_that_was_asked_for(client, accept, media_type):
    response = await client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith(media_type)
    assert ("# EOF" in response.text) == (media_type != "text/plain")
    assert response.headers["cache-control"] == "no-store"


async def test_each_url_is_counted_by_itself_and_each_loss_of_it(synapse, clock):
    urls = ("http://one", "http://two")
    bad = FakeSynapse()
    settings = Settings(synapse_urls=urls)
    app = create_app(
        settings,
        transport=lambda url: httpx.ASGITransport(synapse if url == "http://one" else bad),
        clock=clock,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r") as client:
        bad.answer = Response(status_code=503)
        for losses in (1, 2):
            synapse.answer = Response(status_code=503)
            for number in range(4):
                await resolve(client, f"token-{losses}{number}")
            found = await read(client)
            for url in urls:
                assert found[f"whoami_router_synapse_away {url}"] == 1
                assert found[f"whoami_router_synapse_losses_total {url}"] == (
                    losses if url == "http://one" else 1
                )
            clock.now += 60
            # Its pause is over, but nobody has found it back.
            found = await read(client)
            assert found["whoami_router_synapse_away http://one"] == 1
            synapse.answer = None
            async with asyncio.timeout(5):
                while found["whoami_router_synapse_away http://one"]:
                    await resolve(client, "token-1")
                    found = await read(client)
            assert found["whoami_router_synapse_away http://two"] == 1
