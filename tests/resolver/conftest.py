"""A resolver with a lookup that tests hold in their hands, and a clock they turn."""

import pytest

from tests.clock import Clock
from tests.resolver.lookup import Lookup
from whoami_router.resolver import Resolver


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lookup():
    return Lookup({b"a": "@alice:h", b"a2": "@alice:h", b"b": "@bob:h", b"c": "@carol:h"})


@pytest.fixture
def make_resolver(lookup, clock):
    def make(lookup=lookup, **settings):
        return Resolver(
            lookup,
            **{
                "cache_size": 2,
                "cache_ttl": 60,
                "stale_ttl": 600,
                "rejected_size": 2,
                "rejected_ttl": 30,
                "max_lookups": 100,
                "decode_native_tokens": False,
                "clock": clock,
                **settings,
            },
        )

    return make


@pytest.fixture
def resolver(make_resolver):
    return make_resolver()
