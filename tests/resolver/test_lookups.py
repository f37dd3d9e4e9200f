"""Who is asked about, when, and what comes of it."""

import asyncio
import base64
import hashlib
import logging

import pytest

from tests import logged
from tests.resolver.lookup import CALLER, confirmed, fallback, settle
from tests.test_tokens import NATIVE, with_checksum
from whoami_router.resolver import Resolution, Source
from whoami_router.whoami import Caller, WhoamiUnavailable

pytestmark = pytest.mark.anyio


async def test_no_token_is_nobody_and_asks_nobody(resolver, lookup):
    assert await resolver.resolve(None, CALLER) == Resolution(None, Source.NONE)
    assert lookup.asked == []


async def test_first_request_asks_and_the_next_remember(resolver, lookup):
    caller = Caller(b"192.0.2.1", b"Element")
    assert await resolver.resolve(b"a", caller) == confirmed("alice", Source.WHOAMI)
    assert await resolver.resolve(b"a", CALLER) == confirmed("alice", Source.CACHE)
    assert lookup.asked == [(b"a", caller)]


async def test_all_tokens_of_a_user_have_one_identifier(resolver):
    answers = [await resolver.resolve(token, CALLER) for token in (b"a", b"a2")]
    assert {answer.identifier for answer in answers} == {"alice"}


async def test_least_recently_used_token_is_forgotten_first(resolver):
    for token in (b"a", b"b", b"a", b"c"):
        await resolver.resolve(token, CALLER)
    assert (await resolver.resolve(b"a", CALLER)).source == Source.CACHE
    assert (await resolver.resolve(b"b", CALLER)).source == Source.WHOAMI


async def test_rejected_token_has_no_identifier(resolver):
    assert await resolver.resolve(b"unknown", CALLER) == Resolution(None, Source.REJECTED)


async def test_concurrent_requests_share_one_lookup(resolver, lookup):
    lookup.gate.clear()
    callers = [asyncio.create_task(resolver.resolve(b"a", CALLER)) for _ in range(50)]
    await settle()
    lookup.gate.set()
    assert set(await asyncio.gather(*callers)) == {confirmed("alice", Source.WHOAMI)}
    assert len(lookup.asked) == 1


@pytest.mark.parametrize("leaver", [0, 1])
async def test_cancelled_caller_leaves_the_lookup_to_others(resolver, lookup, leaver):
    lookup.gate.clear()
    callers = [asyncio.create_task(resolver.resolve(b"a", CALLER)) for _ in range(2)]
    await settle()
    callers[leaver].cancel()
    await settle()
    lookup.gate.set()
    stayer = callers[1 - leaver]
    assert await asyncio.wait_for(stayer, 5) == confirmed("alice", Source.WHOAMI)
    assert callers[leaver].cancelled()


async def test_lookup_is_remembered_even_if_every_caller_went_away(resolver, lookup):
    lookup.gate.clear()
    caller = asyncio.create_task(resolver.resolve(b"a", CALLER))
    await settle()
    caller.cancel()
    lookup.gate.set()
    await settle()
    assert (await resolver.resolve(b"a", CALLER)).source == Source.CACHE


async def test_unavailable_synapse_means_routing_by_fingerprint(resolver, lookup):
    lookup.failure = WhoamiUnavailable("away")
    assert await resolver.resolve(b"a", CALLER) == fallback(b"a")
    lookup.failure = None
    assert (await resolver.resolve(b"a", CALLER)).source == Source.WHOAMI


@pytest.mark.parametrize("user_id", ["", "alice", "@alice", "@" + "a" * 10240 + ":h"])
async def test_impossible_user_id_means_routing_by_fingerprint(resolver, lookup, user_id):
    lookup.owners[b"a"] = user_id
    assert await resolver.resolve(b"a", CALLER) == fallback(b"a")


async def test_unavailable_synapse_means_the_localpart_in_a_native_token(resolver, lookup):
    lookup.failure = WhoamiUnavailable("away")
    assert await resolver.resolve(NATIVE, CALLER) == Resolution("alice", Source.TOKEN)


async def test_valid_checksum_around_an_impossible_localpart_is_no_identifier(resolver, lookup):
    lookup.failure = WhoamiUnavailable("away")
    token = with_checksum(b"syt_" + base64.b64encode(b"a:b") + b"_random")
    assert await resolver.resolve(token, CALLER) == fallback(token)


async def test_token_that_no_header_can_carry_is_never_asked_about(resolver, lookup):
    for token in (b"a b", b"a\r\nb", b"\xff", b"a" * 65536):
        assert await resolver.resolve(token, CALLER) == fallback(token)
    assert lookup.asked == []


async def test_defect_in_a_lookup_means_the_fallback_and_is_reported_without_its_message(
    resolver, lookup, caplog
):
    lookup.failure = RuntimeError("very-secret")
    assert await resolver.resolve(b"a", CALLER) == fallback(b"a")
    [record] = caplog.records
    assert logged.fields(record)["error"] == "RuntimeError"
    assert "very-secret" not in logged.text(caplog)
    lookup.failure = None
    assert (await resolver.resolve(b"a", CALLER)).source == Source.WHOAMI


async def test_forged_token_with_an_endless_localpart_is_no_identifier(resolver):
    token = with_checksum(b"syt_" + base64.b64encode(b"%" * 8000).rstrip(b"=") + b"_random")
    assert await resolver.resolve(token, CALLER) == fallback(token)


async def test_debug_log_tells_decisions_but_no_token(resolver, lookup, caplog):
    caplog.set_level(logging.DEBUG)
    lookup.owners[b"very-secret"] = "@alice:h"
    await resolver.resolve(b"very-secret", CALLER)
    [record] = caplog.records
    fingerprint = hashlib.sha256(b"very-secret").hexdigest()
    assert logged.fields(record) == {
        "fingerprint": fingerprint[:12],
        "identifier": "alice",
        "source": "whoami",
    }
    assert "very-secret" not in logged.text(caplog)


async def test_debug_log_has_a_dozen_digits_of_a_fingerprint(resolver, lookup, caplog):
    caplog.set_level(logging.DEBUG)
    lookup.failure = WhoamiUnavailable("away")
    await resolver.resolve(b"very-secret", CALLER)
    digits = hashlib.sha256(b"very-secret").hexdigest()
    first = logged.fields(caplog.records[0])
    assert first == {"fingerprint": digits[:12], "reason": "away"}
    assert f"sha256:{digits[:12]}" in logged.text(caplog)
    assert digits[:13] not in logged.text(caplog)


async def test_lookups_start_one_by_one_so_that_others_get_their_turn(make_resolver, lookup):
    resolver = make_resolver(max_lookups=20)
    lookup.gate.clear()
    asking = [asyncio.create_task(resolver.resolve(b"%d" % n, CALLER)) for n in range(20)]
    started = most = 0
    async with asyncio.timeout(5):
        while started < 20:
            await asyncio.sleep(0)
            most = max(most, len(lookup.asked) - started)
            started = len(lookup.asked)
    assert most == 1
    lookup.gate.set()
    await asyncio.gather(*asking)
