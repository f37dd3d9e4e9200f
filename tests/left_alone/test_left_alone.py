"""A Synapse that does not answer is left alone for a while, and found again by one probe."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from starlette.responses import Response

from tests.left_alone.asking import ALICE, LONGEST_PAUSE, ask, fail, happens, probe, settle
from whoami_router.whoami import Caller, WhoamiUnavailable

pytestmark = pytest.mark.anyio


async def test_synapse_that_fails_is_left_alone_after_the_third_time(asking, one):
    fail(one)
    async with asking("one") as whoami:
        assert await ask(whoami, 50) == [None] * 50
    assert len(one.requests) == 3


async def test_reason_stays_known_while_nobody_asks(asking, one):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        for question in (whoami.owner(b"a", Caller()), whoami.check()):
            with pytest.raises(WhoamiUnavailable, match="http://one answered 502"):
                await question
    assert len(one.requests) == 3


async def test_one_probe_finds_synapse_back_and_nobody_waits_for_it(asking, one, clock):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        one.answer, one.held = None, True
        clock.now += LONGEST_PAUSE
        assert await ask(whoami, 50) == [None] * 50  # each at once: the probe hangs
        await happens(lambda: len(one.requests) == 4)
        one.held = False
        await happens(lambda: not whoami._probes)
        assert await ask(whoami, 2) == [ALICE] * 2
    assert len(one.requests) == 6


async def test_probe_that_fails_means_a_longer_pause(asking, one, clock):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        clock.now += 1
        await ask(whoami)
        await happens(lambda: not whoami._probes)
        clock.now += 0.9  # the second pause is one to two seconds
        await ask(whoami, 50)
        assert len(one.requests) == 4
        clock.now += 1.1
        await ask(whoami)
        await happens(lambda: len(one.requests) == 5)


async def test_probe_that_meets_a_defect_is_not_the_last(asking, one, clock):
    async def defective(*_):
        raise RuntimeError("defect")

    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        one.answer = defective
        await probe(whoami, clock)
        one.answer = None
        await probe(whoami, clock)
        assert await ask(whoami) == [ALICE]


async def test_many_that_hang_together_mean_one_short_pause(asking, one, clock):
    one.held = True
    async with asking("one") as whoami:
        await asyncio.gather(*(ask(whoami) for _ in range(50)))
        one.held = False
        clock.now += 1
        await ask(whoami)
        await happens(lambda: not whoami._probes)
        assert await ask(whoami) == [ALICE]


@pytest.mark.parametrize(
    ("status", "wish", "seconds"),
    [
        pytest.param(429, "7", 7, id="429 with seconds"),
        pytest.param(503, "7", 7, id="503 with seconds"),
        pytest.param(429, "86400", 300, id="at most five minutes"),
        pytest.param(429, "9" * 5000, 300, id="absurd number"),
        pytest.param(429, None, 0.5, id="429 without"),
        pytest.param(429, "soon", 0.5, id="429 with nonsense"),
        pytest.param(429, "\xb2", 0.5, id="429 with a digit that is no number"),
        pytest.param(429, "Sun, 06 Nov 1994 08:49:37 GMT", 0.5, id="429 with a date in the past"),
        pytest.param(429, "Sun, 06 Nov 2094 08:49:37 -0000", 0.5, id="429 with no zone"),
    ],
)
async def test_synapse_that_wants_to_be_left_alone_is(asking, one, clock, status, wish, seconds):
    one.answer = Response(status_code=status, headers={"retry-after": wish} if wish else None)
    async with asking("one") as whoami:
        await ask(whoami)
        one.answer = None
        clock.now += seconds - 0.1
        assert await ask(whoami, 10) == [None] * 10
        await settle()
        assert len(one.requests) == 1
        clock.now += 0.7  # our own shortest pause is as short as half a second, or a whole one
        await ask(whoami)
        await happens(lambda: not whoami._probes)
        assert await ask(whoami) == [ALICE]


async def test_wish_may_be_a_date(asking, one, clock):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    one.answer = Response(status_code=429, headers={"retry-after": date})
    async with asking("one") as whoami:
        await ask(whoami)
        clock.now += 50
        await ask(whoami)
        await settle()
        assert len(one.requests) == 1
        clock.now += 10
        await ask(whoami)
        await happens(lambda: len(one.requests) == 2)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_error_without_a_wish_is_one_failure_of_three(asking, one, status):
    one.answer = Response(status_code=status)
    async with asking("one") as whoami:
        await ask(whoami, 10)
    assert len(one.requests) == 3


async def test_probe_that_hangs_ends_and_is_followed_by_another(asking, one, clock):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        one.answer, one.held = None, True
        for _ in range(2):
            asked = len(one.requests)
            clock.now += LONGEST_PAUSE
            await ask(whoami)
            await happens(lambda asked=asked: len(one.requests) == asked + 1)
            await happens(lambda: not whoami._probes)
        one.held = False
        await probe(whoami, clock)
        assert await ask(whoami) == [ALICE]


async def test_end_of_the_service_is_no_failure_of_synapse(asking, one, caplog):
    one.held = True
    async with asking("one", seconds=0.5) as whoami:
        asked = [asyncio.create_task(ask(whoami)) for _ in range(10)]
        await happens(lambda: len(one.requests) == 10)
    assert await asyncio.gather(*asked) == [[None]] * 10
    assert caplog.records == []


async def test_url_that_asked_to_be_left_alone_is_not_asked_by_those_on_their_way(asking, one, two):
    one.held = True
    two.answer = Response(status_code=429, headers={"retry-after": "300"})
    async with asking("one", "two", seconds=1) as whoami:
        await asyncio.gather(*(ask(whoami) for _ in range(20)))
    assert len(two.requests) == 1


async def test_rejections_are_answers(asking, one):
    async with asking("one") as whoami:
        for _ in range(10):
            assert await whoami.owner(b"unknown", Caller()) is None
    assert len(one.requests) == 10


async def test_second_url_answers_and_the_first_is_left_alone(asking, one, two):
    fail(one)
    async with asking("one", "two") as whoami:
        assert await ask(whoami, 50) == [ALICE] * 50
    assert len(one.requests) == 3
    assert len(two.requests) == 50


async def test_url_left_alone_takes_no_share_of_the_timeout(asking, one, two):
    fail(one)
    async with asking("one", "two", seconds=2) as whoami:
        await ask(whoami, 3)
        two.held = True
        start = time.monotonic()
        slow = asyncio.create_task(ask(whoami))
        await happens(lambda: time.monotonic() > start + 1.1)  # all that it had before
        two.held = False
        assert await slow == [ALICE]


async def test_first_url_is_asked_again_once_it_is_back(asking, one, two, clock):
    fail(one)
    async with asking("one", "two") as whoami:
        await ask(whoami, 3)
        one.answer = None
        clock.now += LONGEST_PAUSE
        assert await ask(whoami) == [ALICE]
        await happens(lambda: not whoami._probes)
        asked = len(two.requests)
        assert await ask(whoami, 10) == [ALICE] * 10
    assert len(two.requests) == asked


async def test_check_asks_after_the_pause_and_decides_nothing(asking, one, clock):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        clock.now += LONGEST_PAUSE
        one.answer = Response(status_code=401)
        await whoami.check()
        one.requests.clear()
        one.held = True
        await ask(whoami, 5)
        await happens(lambda: len(one.requests) == 1)  # a probe, for one token, still has to


async def test_check_shares_its_time_between_the_urls(asking, one, two):
    one.held = True
    async with asking("one", "two", seconds=2) as whoami, asyncio.timeout(1.9):
        await whoami.check()
    assert len(two.requests) == 1


async def test_probe_on_its_way_does_not_outlive_the_service(asking, one, clock):
    fail(one)
    async with asking("one") as whoami:
        await ask(whoami, 3)
        one.held = True
        clock.now += LONGEST_PAUSE
        await ask(whoami)
        [probe] = whoami._probes
    await happens(probe.done)
    assert probe.cancelled()
