"""A Synapse that does not answer is left alone for a while, and found again by one probe."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from starlette.responses import Response

from tests import logged
from tests.clock import Clock
from tests.fake_synapse import FakeSynapse
from whoami_router.whoami import Caller, Owner, TokenUnanswerable, Whoami, WhoamiUnavailable

pytestmark = pytest.mark.anyio

ALICE = Owner("@alice:example.org")
LONGEST_PAUSE = 10


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def synapses():
    """Two processes of one Synapse, at http://one and http://two."""
    return {name: FakeSynapse(name, owners={"a": ALICE.user_id}) for name in ("one", "two")}


@pytest.fixture
def one(synapses):
    return synapses["one"]


@pytest.fixture
def two(synapses):
    return synapses["two"]


@pytest.fixture
def asking(synapses, clock):
    """Returns a Whoami for the named processes."""

    @asynccontextmanager
    async def start(*names, seconds=0.2):
        whoami = Whoami(
            [f"http://{name}" for name in names],
            timeout=seconds,
            transport=lambda url: httpx.ASGITransport(synapses[url.removeprefix("http://")]),
            clock=clock,
        )
        yield whoami
        await whoami.aclose()

    return start


def fail(synapse):
    synapse.answer = Response(status_code=502)


async def ask(whoami, times=1):
    """Ask so many times; return the answers, None for each time that there was none."""
    answers = []
    for _ in range(times):
        try:
            answers.append(await whoami.owner(b"a", Caller()))
        except WhoamiUnavailable:
            answers.append(None)
    return answers


async def settle():
    """Let every probe run until it waits for something outside."""
    for _ in range(20):
        await asyncio.sleep(0)


async def probe(whoami, clock):
    """Let the pause end, and one probe with it."""
    clock.now += LONGEST_PAUSE
    await ask(whoami)
    await happens(lambda: not whoami._probes)


async def happens(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (the condition is nobody's to announce)
            await asyncio.sleep(0.001)


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


# Errors that may be about one token. Some tokens make a real Synapse answer 500.


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


async def test_url_that_asked_to_be_left_alone_is_not_asked_by_those_on_their_way(asking, one, two):
    one.held = True
    two.answer = Response(status_code=429, headers={"retry-after": "300"})
    async with asking("one", "two", seconds=1) as whoami:
        await asyncio.gather(*(ask(whoami) for _ in range(20)))
    assert len(two.requests) == 1


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
