"""Memory is bounded, whatever strangers send. Allocations are counted, not guessed from RSS."""

import gc
import tracemalloc
from contextlib import contextmanager

import pytest

from tests.resolver.lookup import CALLER
from tests.soak import times
from whoami_router.resolver import Source
from whoami_router.whoami import Owner

pytestmark = pytest.mark.anyio


@contextmanager
def allocations():
    """Yield a function that returns how many bytes have been allocated since, and are still."""
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]

        def allocated():
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

        yield allocated
    finally:
        tracemalloc.stop()


async def answer(token, _caller, _user_id=None):
    """Stand in for Synapse, without a memory of its own."""
    return None if token.startswith(b"invalid") else Owner(f"@{token.decode()}:example.org")


async def test_remembered_token_takes_less_than_600_bytes(make_resolver):
    resolver = make_resolver(lookup=answer, cache_size=20_000)
    with allocations() as allocated:
        for number in range(20_000):
            await resolver.resolve(b"user-number-%d" % number, CALLER)
        assert allocated() < 20_000 * 600
        # Nor later, when each new token takes the place of an old one.
        for number in range(20_000, 50_000):
            await resolver.resolve(b"user-number-%d" % number, CALLER)
        assert allocated() < 20_000 * 600


async def test_invalid_tokens_take_no_more_than_their_own_small_memory(make_resolver):
    resolver = make_resolver(lookup=answer, cache_size=20_000, rejected_size=1000)
    await resolver.resolve(b"alice", CALLER)
    with allocations() as allocated:
        for number in range(times(20_000)):
            await resolver.resolve(b"invalid-%d" % number, CALLER)
        assert allocated() < 1000 * 600
    assert (await resolver.resolve(b"alice", CALLER)).source == Source.CACHE


async def test_tokens_that_cannot_be_asked_about_take_none(make_resolver):
    resolver = make_resolver(lookup=answer)
    with allocations() as allocated:
        for number in range(10_000):
            await resolver.resolve(b"not askable %d" % number, CALLER)
        assert allocated() < 100_000  # ten bytes each: threads of other tests allocate, too
