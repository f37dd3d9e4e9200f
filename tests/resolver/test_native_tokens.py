"""Tokens that Synapse issued itself, when they are decoded instead of asked about."""

import pytest

from tests.resolver.lookup import CALLER, confirmed
from tests.test_tokens import NATIVE, native
from whoami_router.resolver import Resolution, Source

pytestmark = pytest.mark.anyio


@pytest.fixture
def resolver(make_resolver):
    return make_resolver(decode_native_tokens=True)


async def test_native_token_causes_no_lookup(resolver, lookup):
    for _ in range(3):
        assert await resolver.resolve(NATIVE, CALLER) == Resolution("alice", Source.TOKEN)
    assert lookup.asked == []


@pytest.mark.parametrize("localpart", ["alice", "a.b_c=d-e/f+g", "Üser", "%", "a b", "x" * 200])
async def test_identifier_is_the_same_as_whoamis(resolver, make_resolver, lookup, localpart):
    token = native(localpart.encode())
    lookup.owners[token] = f"@{localpart}:h"
    asked = await make_resolver().resolve(token, CALLER)
    assert asked.source == Source.WHOAMI
    assert (await resolver.resolve(token, CALLER)).identifier == asked.identifier


async def test_whoami_decides_about_every_other_token(resolver, lookup):
    others = [NATIVE[:-1] + b"0", b"a", native(b"a:b"), native(b"\xff"), native(b"x" * 300)]
    for number, token in enumerate(others):
        lookup.owners[token] = f"@user{number}:h"
        resolution = await resolver.resolve(token, CALLER)
        assert resolution == confirmed(f"user{number}", Source.WHOAMI)


async def test_without_the_option_native_tokens_are_asked_about(make_resolver, lookup):
    lookup.owners[NATIVE] = "@alice:h"
    assert (await make_resolver().resolve(NATIVE, CALLER)).source == Source.WHOAMI
