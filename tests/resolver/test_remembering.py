"""How long an answer counts, what is refreshed, and what is forgotten first."""

import pytest

from tests.resolver.lookup import CALLER, confirmed, fallback, settle
from tests.test_tokens import NATIVE
from whoami_router.resolver import Resolution, Source
from whoami_router.whoami import Caller, TokenUnanswerable, WhoamiUnavailable

pytestmark = pytest.mark.anyio

CACHED = confirmed("alice", Source.CACHE)
STALE = Resolution("alice", Source.STALE)
REJECTED = Resolution(None, Source.REJECTED)


async def source(resolver, token=b"a"):
    return (await resolver.resolve(token, CALLER)).source


# Fresh.


async def test_answer_is_asked_for_again_after_its_ttl(resolver, clock):
    await resolver.resolve(b"a", CALLER)
    clock.now += 44.9
    assert await source(resolver) == Source.CACHE
    clock.now += 15.2
    assert await source(resolver) == Source.WHOAMI


async def test_busy_token_never_waits_again(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    for _ in range(1000):
        clock.now += 1
        assert await resolver.resolve(b"a", CALLER) == CACHED
        await settle()
    # In each minute one lookup, in its last quarter.
    assert 1000 / 60 <= len(lookup.asked) <= 1 + 1000 / 45


async def test_tokens_that_were_new_at_once_are_refreshed_one_after_the_other(
    make_resolver, lookup, clock
):
    resolver = make_resolver(cache_size=1000)
    lookup.owners = {b"t%d" % number: "@alice:h" for number in range(400)}
    for token in lookup.owners:
        await resolver.resolve(token, CALLER)
    clock.now += 45
    refreshed = []
    while len(refreshed) < 12:
        asked = len(lookup.asked)
        clock.now += 1
        for token in lookup.owners:
            assert await resolver.resolve(token, CALLER) == CACHED
            await settle()
        refreshed.append(len(lookup.asked) - asked)
    assert sum(refreshed) == len(lookup.owners)
    assert max(refreshed) < len(lookup.owners) / 5


async def test_refresh_that_hangs_holds_nobody_up_and_is_the_only_one(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    lookup.gate.clear()
    clock.now += 58
    for _ in range(20):
        assert await resolver.resolve(b"a", CALLER) == CACHED
        await settle()
    assert len(lookup.asked) == 2
    lookup.gate.set()
    await settle()
    clock.now += 30  # beyond the first answer's time, not the second's
    assert await resolver.resolve(b"a", CALLER) == CACHED


async def test_refresh_is_asked_for_in_the_name_of_whom_it_serves(resolver, lookup, clock):
    await resolver.resolve(b"a", Caller(b"192.0.2.1", b"Element/1"))
    clock.now += 58
    await resolver.resolve(b"a", Caller(b"192.0.2.2", b"Element/2"))
    await settle()
    assert lookup.asked[-1] == (b"a", Caller(b"192.0.2.2", b"Element/2"))


async def test_answer_that_is_not_in_use_is_not_refreshed(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    clock.now += 44.9
    await resolver.resolve(b"a", CALLER)
    clock.now += 1000
    await settle()
    assert len(lookup.asked) == 1


async def test_refresh_that_learns_of_a_rejection_is_believed(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    del lookup.owners[b"a"]
    clock.now += 58
    assert await resolver.resolve(b"a", CALLER) == CACHED
    await settle()
    assert await resolver.resolve(b"a", CALLER) == REJECTED
    lookup.failure = WhoamiUnavailable("away")
    clock.now += 31
    assert await resolver.resolve(b"a", CALLER) == fallback(b"a")  # nothing stale is left of it


async def test_refresh_that_breaks_synapse_is_not_tried_with_each_request(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    lookup.failure = TokenUnanswerable("500")
    clock.now += 58
    for _ in range(10):
        assert await resolver.resolve(b"a", CALLER) == CACHED
        await settle()
    assert len(lookup.asked) == 2


async def test_refresh_that_fails_changes_nothing(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    lookup.failure = WhoamiUnavailable("away")
    clock.now += 58
    assert await resolver.resolve(b"a", CALLER) == CACHED
    await settle()
    assert await resolver.resolve(b"a", CALLER) == CACHED


# Stale.


@pytest.mark.parametrize("token", [b"a", NATIVE])
async def test_answer_is_usable_longer_while_synapse_is_unavailable(resolver, lookup, clock, token):
    lookup.owners[NATIVE] = "@alice:h"
    await resolver.resolve(token, CALLER)
    lookup.failure = WhoamiUnavailable("away")
    clock.now += 60
    assert await resolver.resolve(token, CALLER) == STALE
    clock.now += 599
    assert await resolver.resolve(token, CALLER) == STALE
    lookup.failure = None
    assert await resolver.resolve(token, CALLER) == confirmed("alice", Source.WHOAMI)


async def test_answer_is_not_usable_for_ever(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    lookup.failure = WhoamiUnavailable("away")
    clock.now += 660
    assert await resolver.resolve(b"a", CALLER) == fallback(b"a")


async def test_stale_answers_can_be_switched_off(make_resolver, lookup, clock):
    resolver = make_resolver(stale_ttl=0)
    await resolver.resolve(b"a", CALLER)
    lookup.failure = WhoamiUnavailable("away")
    clock.now += 60
    assert await resolver.resolve(b"a", CALLER) == fallback(b"a")


async def test_defect_leaves_what_is_remembered(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    lookup.failure = RuntimeError("defect")
    clock.now += 60
    assert await resolver.resolve(b"a", CALLER) == STALE


# Refused.


async def test_rejected_token_is_asked_about_once_in_its_ttl(resolver, lookup, clock):
    for _ in range(10):
        assert await resolver.resolve(b"unknown", CALLER) == REJECTED
    clock.now += 29.9
    await resolver.resolve(b"unknown", CALLER)
    assert len(lookup.asked) == 1
    clock.now += 0.2
    await resolver.resolve(b"unknown", CALLER)
    assert len(lookup.asked) == 2


async def test_rejected_tokens_evict_no_user(resolver):
    await resolver.resolve(b"a", CALLER)
    for number in range(1000):
        await resolver.resolve(b"unknown%d" % number, CALLER)
    assert await resolver.resolve(b"a", CALLER) == CACHED


async def test_least_recently_used_rejected_token_is_forgotten_first(resolver, lookup):
    for token in (b"u1", b"u2", b"u1", b"u3", b"u1", b"u2"):
        await resolver.resolve(token, CALLER)
    assert lookup.tokens == [b"u1", b"u2", b"u3", b"u2"]


async def test_remembering_rejected_tokens_can_be_switched_off(make_resolver, lookup):
    resolver = make_resolver(rejected_ttl=0)
    for _ in range(3):
        assert await resolver.resolve(b"unknown", CALLER) == REJECTED
    assert len(lookup.asked) == 3


async def test_unavailable_synapse_is_no_rejection(resolver, lookup):
    lookup.failure = WhoamiUnavailable("away")
    await resolver.resolve(b"a", CALLER)
    lookup.failure = None
    assert await source(resolver) == Source.WHOAMI


async def test_token_that_becomes_valid_is_known_after_the_ttl(resolver, lookup, clock):
    await resolver.resolve(b"late", CALLER)
    lookup.owners[b"late"] = "@late:h"
    clock.now += 30
    assert await resolver.resolve(b"late", CALLER) == confirmed("late", Source.WHOAMI)
    assert await resolver.resolve(b"late", CALLER) == confirmed("late", Source.CACHE)


async def test_token_that_breaks_synapse_is_asked_about_once_in_its_ttl(resolver, lookup, clock):
    lookup.failure = TokenUnanswerable("500")
    for _ in range(10):
        assert await resolver.resolve(b"a", CALLER) == fallback(b"a")
    assert len(lookup.asked) == 1
    lookup.failure = None
    clock.now += 30
    assert await source(resolver) == Source.WHOAMI


async def test_token_that_breaks_synapse_leaves_what_is_remembered(resolver, lookup, clock):
    await resolver.resolve(b"a", CALLER)
    lookup.failure = TokenUnanswerable("500")
    clock.now += 60
    for _ in range(10):
        assert await resolver.resolve(b"a", CALLER) == STALE
    assert len(lookup.asked) == 2


async def test_tokens_that_break_synapse_evict_no_user(resolver, lookup):
    await resolver.resolve(b"a", CALLER)
    lookup.failure = TokenUnanswerable("500")
    for number in range(1000):
        await resolver.resolve(b"evil%d" % number, CALLER)
    assert await resolver.resolve(b"a", CALLER) == CACHED
