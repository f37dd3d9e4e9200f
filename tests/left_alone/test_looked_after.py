"""A Synapse that comes and goes is a few lines of the log, and looked after though nobody asks."""

import asyncio
import logging

import pytest

from tests import logged
from tests.left_alone.asking import LONGEST_PAUSE, ask, fail, happens

pytestmark = pytest.mark.anyio


async def test_synapse_going_and_coming_back_is_one_line_each(asking, one, clock, caplog):
    caplog.set_level(logging.INFO, logger="whoami_router")
    fail(one)
    async with asking("one") as whoami:
        for _ in range(5):
            await ask(whoami, 20)
            await happens(lambda: not whoami._probes)
            clock.now += LONGEST_PAUSE
        one.answer = None
        await ask(whoami)
        await happens(lambda: not whoami._probes)
        await ask(whoami, 20)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert [logged.fields(record) for record in caplog.records] == [
        {"url": "http://one", "reason": "http://one answered 502", "times": 1},
        {"url": "http://one"},
    ]


async def test_synapse_that_comes_and_goes_is_a_line_each_in_a_minute(asking, one, clock, caplog):
    async def lose_and_find():
        fail(one)
        await ask(whoami, 3)
        assert [state.away for state in whoami.states()] == [True]
        one.answer = None
        clock.now += LONGEST_PAUSE / 2  # the first pause is a second
        await ask(whoami)
        await happens(lambda: not whoami._probes)
        assert [state.away for state in whoami.states()] == [False]

    async with asking("one") as whoami:
        for _ in range(5):
            await lose_and_find()
        assert [record.getMessage()[:22] for record in caplog.records] == [
            "Synapse cannot be aske",
            "Synapse can be asked a",
        ]
        clock.now += 60
        await lose_and_find()
    assert [logged.fields(record).get("times") for record in caplog.records] == [1, None, 5, None]


async def test_synapse_that_stays_away_after_it_came_and_went_is_said_to_be(
    asking, one, clock, caplog
):
    async with asking("one") as whoami:
        fail(one)
        await ask(whoami, 3)
        one.answer = None
        clock.now += LONGEST_PAUSE
        await ask(whoami)
        await happens(lambda: not whoami._probes)
        fail(one)
        await ask(whoami, 3)
        assert len(caplog.records) == 2  # and the last says that it is back
        for _ in range(10):
            clock.now += LONGEST_PAUSE
            await ask(whoami)
            await happens(lambda: not whoami._probes)
    assert [record.getMessage()[:22] for record in caplog.records] == [
        "Synapse cannot be aske",
        "Synapse can be asked a",
        "Synapse cannot be aske",
    ]


async def look(whoami):
    """Wait until the server has been looked after once more, which is once a second."""
    [server] = whoami._servers
    before = server._look
    await happens(lambda: server._look is not before)


async def test_synapse_is_found_back_though_nobody_has_a_token_to_ask_about(asking, one, clock):
    async with asking("one") as whoami:
        fail(one)
        await ask(whoami, 3)
        one.answer = None
        asked = len(one.requests)
        clock.now += 1  # the first pause is over
        await look(whoami)
        assert len(one.requests) == asked  # who has a token comes first
        clock.now += 5
        await happens(lambda: not whoami.states()[0].away)
        assert "authorization" not in one.requests[-1].headers
        assert len(one.requests) == asked + 1


async def test_synapse_that_stays_away_is_asked_once_after_each_pause(asking, one, clock):
    async with asking("one") as whoami:
        fail(one)
        await ask(whoami, 3)
        asked = len(one.requests)
        for number in (1, 2):
            clock.now += LONGEST_PAUSE + 5
            await happens(lambda number=number: len(one.requests) == asked + number)
            await look(whoami)
            assert len(one.requests) == asked + number
        assert whoami.states()[0].away


async def test_many_that_fail_together_are_one_line(asking, one, caplog):
    caplog.set_level(logging.INFO, logger="whoami_router")
    fail(one)
    one.held = True
    async with asking("one", seconds=20) as whoami:
        asked = [asyncio.create_task(ask(whoami)) for _ in range(50)]
        await happens(lambda: len(one.requests) == 50)
        one.held = False
        await asyncio.gather(*asked)
    assert len(caplog.records) == 1


async def test_single_failures_are_no_news(asking, one, caplog):
    caplog.set_level(logging.INFO, logger="whoami_router")
    async with asking("one") as whoami:
        for _ in range(5):
            fail(one)
            await ask(whoami, 2)
            one.answer = None
            await ask(whoami)
    assert caplog.records == []
