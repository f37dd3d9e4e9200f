"""Errors that may be about one token. Some tokens make a real Synapse answer 500."""

import asyncio

import httpx
import pytest
from starlette.responses import Response

from tests.left_alone.asking import ALICE, LONGEST_PAUSE, ask, fail, happens
from whoami_router.whoami import Caller, TokenUnanswerable, WhoamiUnavailable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [500, 302, 400, 404, 414, 431])
async def test_error_for_every_token_and_for_none_is_a_synapse_that_is_away(asking, one, status):
    one.answer = Response(status_code=status)
    async with asking("one") as whoami:
        assert await ask(whoami, 50) == [None] * 50
    tokens = ["authorization" in request.headers for request in one.requests]
    assert tokens == [True, False, True, True]


async def test_requests_that_make_synapse_hang_up_keep_nobody_from_being_looked_up(asking, one):
    async def hang_up(scope, receive, send):
        if (b"authorization", b"Bearer evil") in scope["headers"]:
            raise httpx.ReadError("hung up")
        await one.app(scope, receive, send)

    one.answer = hang_up
    async with asking("one") as whoami:
        for _ in range(20):
            with pytest.raises(TokenUnanswerable):
                await whoami.owner(b"evil", Caller())
        assert await ask(whoami) == [ALICE]


async def test_tokens_that_break_synapse_keep_nobody_from_being_looked_up(asking, one):
    one.breaking = {f"evil{number}" for number in range(50)}
    async with asking("one") as whoami:
        for token in one.breaking:
            with pytest.raises(TokenUnanswerable, match="http://one answered 500"):
                await whoami.owner(token.encode(), Caller())
            assert await ask(whoami) == [ALICE]


async def test_tokens_that_break_synapse_cost_one_check_in_a_second(asking, one, clock):
    one.breaking = {"evil"}
    async with asking("one") as whoami:
        for _ in range(3):
            for _ in range(50):
                with pytest.raises(TokenUnanswerable):
                    await whoami.owner(b"evil", Caller())
            clock.now += 1
    checks = [request for request in one.requests if "authorization" not in request.headers]
    assert len(checks) == 3


async def test_concurrent_tokens_that_break_synapse_share_a_check(asking, one):
    checks, go_on = 0, asyncio.Event()

    async def break_over_tokens(scope, receive, send):
        nonlocal checks
        status = 500
        if all(name != b"authorization" for name, _ in scope["headers"]):
            checks += 1
            await go_on.wait()
            status = 401
        await Response(status_code=status)(scope, receive, send)

    one.answer = break_over_tokens
    async with asking("one", seconds=20) as whoami:
        asked = [asyncio.create_task(whoami.owner(b"evil", Caller())) for _ in range(50)]
        await happens(lambda: len(one.requests) >= 51)
        go_on.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {TokenUnanswerable}
    assert checks == 1


async def test_slow_synapse_is_not_taken_for_one_that_is_away_when_tokens_break_it(asking, one):
    """The check takes longer than its callers have time left."""

    async def slow(scope, receive, send):
        await asyncio.sleep(0.3)
        await one.app(scope, receive, send)

    one.answer, one.breaking = slow, {"evil"}
    async with asking("one", seconds=0.5) as whoami:
        for _ in range(3):
            evil = [whoami.owner(b"evil", Caller()) for _ in range(5)]
            for result in await asyncio.gather(*evil, return_exceptions=True):
                assert isinstance(result, WhoamiUnavailable)
        assert await ask(whoami) == [ALICE]


async def test_nobody_waits_for_the_check_beyond_the_timeout(asking, one):
    async def slow_with_token_and_hung_without(scope, receive, send):
        token = any(name == b"authorization" for name, _ in scope["headers"])
        await asyncio.sleep(1.6 if token else 60)
        await Response(status_code=500)(scope, receive, send)

    one.answer = slow_with_token_and_hung_without
    async with asking("one", seconds=2) as whoami, asyncio.timeout(3):
        assert await ask(whoami) == [None]


async def test_wish_in_answer_to_the_check_is_heard(asking, one, clock):
    async def break_and_wish(scope, receive, send):
        token = any(name == b"authorization" for name, _ in scope["headers"])
        answer = Response(status_code=500) if token else Response(None, 503, {"retry-after": "60"})
        await answer(scope, receive, send)

    one.answer = break_and_wish
    async with asking("one") as whoami:
        await ask(whoami)
        one.answer = None
        clock.now += 59
        assert await ask(whoami, 10) == [None] * 10
    assert len(one.requests) == 2


async def test_synapse_that_dies_just_after_a_check_is_away(asking, one):
    async def dead(*_):
        raise httpx.ConnectError("refused")

    one.breaking = {"evil"}
    async with asking("one") as whoami:
        with pytest.raises(TokenUnanswerable):
            await whoami.owner(b"evil", Caller())
        one.answer = dead
        for _ in range(3):
            with pytest.raises(WhoamiUnavailable) as caught:
                await whoami.owner(b"a", Caller())
            assert caught.type is not TokenUnanswerable
        asked = len(one.requests)
        await ask(whoami, 10)
        assert len(one.requests) == asked


async def test_probe_with_a_token_that_breaks_synapse_finds_it_back(asking, one, clock):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        one.answer, one.breaking = None, {"evil"}
        clock.now += LONGEST_PAUSE
        with pytest.raises(WhoamiUnavailable):
            await whoami.owner(b"evil", Caller())
        await happens(lambda: not whoami._probes)
        assert await ask(whoami) == [ALICE]


async def test_second_url_is_asked_about_a_token_that_breaks_the_first(asking, one):
    one.breaking = {"a"}
    async with asking("one", "two") as whoami:
        assert await ask(whoami, 10) == [ALICE] * 10


async def test_check_that_hangs_takes_no_longer_than_the_timeout(asking, one):
    requests = 0

    async def hang_without_token(scope, receive, send):
        nonlocal requests
        requests += 1
        if any(name == b"authorization" for name, _ in scope["headers"]):
            await Response(status_code=500)(scope, receive, send)
        else:
            await asyncio.sleep(60)

    one.answer = hang_without_token
    async with asking("one") as whoami, asyncio.timeout(5):
        assert await ask(whoami, 50) == [None] * 50
    assert requests == 4
