"""More lookups at once than are allowed: who waits, and who is answered at once."""

import asyncio
import logging

import pytest

from tests import logged
from tests.resolver.lookup import CALLER, confirmed, fallback, settle
from tests.test_tokens import NATIVE
from whoami_router.resolver import Resolution, Source

pytestmark = pytest.mark.anyio


@pytest.fixture
def resolver(make_resolver):
    return make_resolver(max_lookups=2, cache_size=100)


@pytest.fixture
async def busy(resolver, lookup):
    """As many lookups as are allowed, all of them waiting."""
    lookup.gate.clear()
    callers = [asyncio.create_task(resolver.resolve(token, CALLER)) for token in (b"a", b"b")]
    await settle()
    yield callers
    lookup.gate.set()
    assert [(await caller).source for caller in callers] == [Source.WHOAMI] * 2


async def at_once(question):
    task = asyncio.create_task(question)
    await settle()
    assert task.done()
    return await task


@pytest.mark.usefixtures("busy")
async def test_what_exceeds_the_bound_is_answered_by_its_fallback_at_once(resolver, lookup):
    assert await at_once(resolver.resolve(b"c", CALLER)) == fallback(b"c")
    assert await at_once(resolver.resolve(NATIVE, CALLER)) == Resolution("alice", Source.TOKEN)
    assert lookup.tokens == [b"a", b"b"]


async def test_shed_token_is_asked_about_when_there_is_room(resolver, lookup, busy):
    await resolver.resolve(b"c", CALLER)
    lookup.gate.set()
    await asyncio.wait(busy)
    assert await resolver.resolve(b"c", CALLER) == confirmed("carol", Source.WHOAMI)


async def test_request_for_a_token_that_is_asked_about_is_not_shed(resolver, lookup, busy):
    more = [asyncio.create_task(resolver.resolve(b"a", CALLER)) for _ in range(50)]
    await settle()
    lookup.gate.set()
    assert set(await asyncio.gather(*more)) == {await busy[0]}


async def test_never_more_lookups_than_allowed(make_resolver, lookup):
    resolver = make_resolver(max_lookups=8, cache_size=3000)
    for number in range(2000):
        lookup.owners[b"t%d" % number] = f"@user{number}:h"
    lookup.gate.clear()
    callers = [
        asyncio.create_task(resolver.resolve(token, CALLER))
        for token in list(lookup.owners)
        if token.startswith(b"t")
    ]
    await settle()
    assert sum(caller.done() for caller in callers) == 1992
    lookup.gate.set()
    await asyncio.gather(*callers)
    assert lookup.most_running == 8


@pytest.mark.usefixtures("busy")
async def test_stale_answer_comes_before_the_other_fallbacks(make_resolver, lookup, clock):
    resolver = make_resolver(max_lookups=1)
    lookup.gate.set()
    await resolver.resolve(b"a", CALLER)
    lookup.gate.clear()
    clock.now += 60
    other = asyncio.create_task(resolver.resolve(b"b", CALLER))
    await settle()
    assert await at_once(resolver.resolve(b"a", CALLER)) == Resolution("alice", Source.STALE)
    lookup.gate.set()
    await other


async def test_refresh_finds_no_room_and_nobody_notices(make_resolver, lookup, clock, caplog):
    resolver = make_resolver(max_lookups=1)
    await resolver.resolve(b"a", CALLER)
    clock.now += 58
    lookup.gate.clear()
    other = asyncio.create_task(resolver.resolve(b"b", CALLER))
    await settle()
    assert await at_once(resolver.resolve(b"a", CALLER)) == confirmed("alice", Source.CACHE)
    assert lookup.tokens == [b"a", b"b"]
    assert caplog.records == []
    lookup.gate.set()
    await other


async def test_refreshes_leave_room_for_new_tokens(make_resolver, lookup, clock):
    resolver = make_resolver(max_lookups=8, cache_size=100)
    known = [b"t%d" % number for number in range(20)]
    lookup.owners |= dict.fromkeys(known, "@alice:h")
    for token in known:
        await resolver.resolve(token, CALLER)
    clock.now += 58
    lookup.gate.clear()
    for token in known:
        assert (await resolver.resolve(token, CALLER)).source == Source.CACHE
    await settle()
    assert lookup.running == 2
    new = asyncio.create_task(resolver.resolve(b"c", CALLER))
    await settle()
    lookup.gate.set()
    assert await new == confirmed("carol", Source.WHOAMI)


@pytest.mark.usefixtures("busy")
async def test_shedding_is_a_line_a_minute_with_the_number(resolver, clock, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        for number in range(100):
            await resolver.resolve(b"c%d" % number, CALLER)
        clock.now += 60
    said = [logged.fields(record) for record in caplog.records]
    assert said == [{"max_lookups": 2, "lookups": number} for number in (1, 100, 100)]
    assert resolver.shed == 300
