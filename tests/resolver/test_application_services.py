"""Tokens that act for many users: the user_id of the request says for whom."""

import asyncio
import logging
from urllib.parse import quote

import pytest

from tests import logged
from tests.resolver.lookup import CALLER, confirmed, settle
from whoami_router.resolver import Resolution, Source
from whoami_router.whoami import WhoamiUnavailable

pytestmark = pytest.mark.anyio

BRIDGE = "@bridge:h"
BOB, CAROL = "@_bridge_bob:h", "@_bridge_carol:h"


@pytest.fixture
def resolver(make_resolver, lookup):
    lookup.services[b"as"] = [BRIDGE, BOB, CAROL]
    return make_resolver(cache_size=100, rejected_size=100)


def acting_for(user_id):
    return b"/_matrix/client/v3/sync?user_id=" + quote(user_id).encode()


async def resolve(resolver, user_id, token=b"as"):
    return await resolver.resolve(token, CALLER, acting_for(user_id))


async def test_two_users_of_one_token_have_two_identifiers(resolver, lookup):
    for source in (Source.WHOAMI, Source.CACHE):
        assert await resolve(resolver, BOB) == confirmed("_bridge_bob", source)
        assert await resolve(resolver, CAROL) == confirmed("_bridge_carol", source)
    assert lookup.asked == [
        (b"as", CALLER),
        (b"as", CALLER, BOB),
        (b"as", CALLER, CAROL),
    ]


@pytest.mark.parametrize("uri", [None, b"/sync", b"/sync?user_id=", b"/sync?access_token=as"])
async def test_service_itself_has_its_own(resolver, uri):
    await resolve(resolver, BOB)
    assert await resolver.resolve(b"as", CALLER, uri) == confirmed("bridge", Source.CACHE)


async def test_service_may_name_itself(resolver):
    assert (await resolve(resolver, BRIDGE)).identifier == "bridge"
    assert (await resolve(resolver, BOB)).identifier == "_bridge_bob"


async def test_unregistered_user_is_the_services_own_and_asked_about_once(resolver, lookup, clock):
    for _ in range(5):
        assert (await resolve(resolver, "@_bridge_new:h")).identifier == "bridge"
    assert len(lookup.asked) == 2
    lookup.services[b"as"].append("@_bridge_new:h")
    clock.now += 30
    assert (await resolve(resolver, "@_bridge_new:h")).identifier == "_bridge_new"


@pytest.mark.parametrize(
    "uri",
    [
        b"/sync?user_id=nobody",
        b"/sync?user_id=%00",
        b"/sync?user_id=%40a%00b:h",
        b"/sync?user_id=%ff%fe",
        b"/sync?user_id=@" + b"a" * 10240 + b":h",
        b"/sync?user_id=%40a%0D%0AX-Evil:h",
    ],
)
async def test_what_is_no_user_is_the_services_own(resolver, uri):
    assert (await resolver.resolve(b"as", CALLER, uri)).identifier == "bridge"


async def test_ordinary_token_ignores_user_id_and_costs_no_extra_lookup(resolver, lookup):
    for user_id in (BOB, CAROL, "@bob:h"):
        assert (await resolve(resolver, user_id, b"a")).identifier == "alice"
    assert lookup.asked == [(b"a", CALLER)]


async def test_token_without_a_device_costs_one_lookup_more_and_not_one_for_each_user(
    resolver, lookup
):
    lookup.without_device.add(b"a")
    for number in range(50):
        assert (await resolve(resolver, f"@user{number}:h", b"a")).identifier == "alice"
        assert (await resolve(resolver, f"@alice:h{number}", b"a")).identifier == "alice"
    assert len(lookup.asked) == 2
    assert len(resolver._answers) == 1


async def test_token_that_is_no_services_stays_so_when_it_is_refreshed(resolver, lookup, clock):
    lookup.without_device.add(b"a")
    await resolve(resolver, BOB, b"a")
    for _ in range(3):
        clock.now += 58
        for number in range(5):
            await resolve(resolver, f"@user{number}:h", b"a")
            await settle()
    assert len(lookup.asked) == 2 + 3


async def test_rejected_and_unknown_tokens_ignore_user_id(resolver, lookup):
    for number in range(5):
        resolution = await resolve(resolver, f"@user{number}:h", b"unknown")
        assert resolution == Resolution(None, Source.REJECTED)
    assert lookup.asked == [(b"unknown", CALLER)]


async def test_unavailable_synapse_means_stale_users_and_else_the_services_own(
    resolver, lookup, clock
):
    await resolve(resolver, BOB)
    lookup.failure = WhoamiUnavailable("away")
    assert await resolve(resolver, CAROL) == Resolution("bridge", Source.CACHE)
    clock.now += 60
    assert await resolve(resolver, BOB) == Resolution("_bridge_bob", Source.STALE)
    assert await resolve(resolver, CAROL) == Resolution("bridge", Source.STALE)


async def test_concurrent_requests_for_one_user_share_their_lookups(resolver, lookup):
    lookup.gate.clear()
    callers = [asyncio.create_task(resolve(resolver, BOB)) for _ in range(20)]
    await settle()
    lookup.gate.set()
    assert {(await caller).identifier for caller in callers} == {"_bridge_bob"}
    assert len(lookup.asked) == 2


async def test_log_tells_the_user_and_no_token(resolver, lookup, caplog):
    caplog.set_level(logging.DEBUG)
    lookup.services[b"very-secret"] = [BRIDGE, BOB]
    await resolve(resolver, BOB, b"very-secret")
    said = [logged.fields(record) for record in caplog.records]
    assert [each["identifier"] for each in said if each["source"] == "whoami"] == ["_bridge_bob"]
    assert "very-secret" not in logged.text(caplog)
