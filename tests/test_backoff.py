"""When a server is left alone, on a clock that the tests turn."""

import pytest

from tests.clock import Clock
from whoami_router.backoff import Backoff

LONGEST = 10


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def backoff(clock):
    return Backoff(clock=clock, rng=lambda: 1.0)  # the longest of each pause


def fail(backoff, times=1, **how):
    """One question after the other fails."""
    for _ in range(times):
        backoff.failed(backoff.mark, **how)


def pauses(backoff, clock, number):
    """Return how long each of the next pauses lasts, a probe failing after each."""
    lengths = []
    for _ in range(number):
        start = clock.now
        while backoff.resting:
            clock.now += 0.25
        lengths.append(clock.now - start)
        assert backoff.start_probe()
        fail(backoff)
    return lengths


def test_server_is_asked_freely_at_first(backoff):
    assert not backoff.away
    assert not backoff.resting
    assert not backoff.start_probe()


def test_two_failures_in_a_row_are_accidents(backoff):
    fail(backoff, 2)
    assert not backoff.away


def test_third_failure_in_a_row_is_a_server_that_is_away(backoff):
    fail(backoff, 3)
    assert backoff.away
    assert backoff.resting


def test_answer_in_between_ends_the_row(backoff):
    for _ in range(10):
        fail(backoff, 2)
        backoff.succeeded(backoff.mark)
    assert not backoff.away


def test_pauses_double_up_to_the_longest(backoff, clock):
    fail(backoff, 3)
    assert pauses(backoff, clock, 6) == [1, 2, 4, 8, LONGEST, LONGEST]


def test_pause_never_grows_beyond_the_longest(backoff, clock):
    fail(backoff, 3)
    assert pauses(backoff, clock, 2000)[-1] == LONGEST


@pytest.mark.parametrize(("number", "pause"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_pause_is_shortened_by_chance_so_that_processes_keep_apart(clock, number, pause):
    backoff = Backoff(clock=clock, rng=lambda: number)
    fail(backoff, 3)
    clock.now += pause - 0.01
    assert backoff.resting
    clock.now += 0.01
    assert not backoff.resting


def test_one_probe_decides(backoff, clock):
    fail(backoff, 3)
    assert not backoff.start_probe()
    clock.now += 1
    assert backoff.start_probe()
    assert not backoff.start_probe()
    assert backoff.away
    backoff.succeeded(backoff.mark)
    assert not backoff.away
    fail(backoff, 2)
    assert not backoff.away


def test_failures_of_questions_from_before_the_pause_do_not_prolong_it(backoff, clock):
    mark = backoff.mark
    for _ in range(100):
        backoff.failed(mark)
    clock.now += 1
    for _ in range(100):
        backoff.failed(mark)  # later than the pause, too: they waited long for nothing
    assert not backoff.resting
    assert pauses(backoff, clock, 2) == [0, 2]


def test_failure_of_a_question_from_before_the_pause_starts_no_second_probe(backoff, clock):
    mark = backoff.mark
    fail(backoff, 3)
    clock.now += 1
    assert backoff.start_probe()
    backoff.failed(mark)
    assert not backoff.start_probe()


def test_answer_to_a_question_from_before_the_pause_does_not_end_it(backoff, clock):
    mark = backoff.mark
    fail(backoff, 3)
    backoff.succeeded(mark)
    assert backoff.resting
    assert backoff.away
    clock.now += 1
    backoff.succeeded(mark)
    assert backoff.away  # the probe decides


def test_server_that_asks_for_a_pause_gets_it_at_once(backoff, clock):
    fail(backoff, retry_after=5)
    assert backoff.away
    clock.now += 4.9
    assert backoff.resting
    clock.now += 0.2
    assert backoff.start_probe()


def test_wish_does_not_shorten_our_own_pause(backoff, clock):
    fail(backoff, retry_after=0)
    clock.now += 0.9
    assert backoff.resting


def test_wish_during_a_pause_prolongs_it(backoff, clock):
    mark = backoff.mark
    fail(backoff, 3)
    backoff.failed(mark, retry_after=60)
    backoff.failed(mark, retry_after=5)
    clock.now += 59.9
    assert backoff.resting
    clock.now += 0.2
    assert not backoff.resting


def test_wish_to_be_forgotten_is_granted_for_five_minutes(backoff, clock):
    fail(backoff, retry_after=1e9)
    clock.now += 300
    assert not backoff.resting


def test_wish_from_before_a_pause_is_heard_after_it(backoff, clock):
    mark = backoff.mark
    fail(backoff, 3)
    clock.now += 1
    assert backoff.start_probe()
    backoff.succeeded(backoff.mark)
    backoff.failed(mark, retry_after=60)
    assert backoff.away
    clock.now += 60
    assert backoff.start_probe()
    backoff.succeeded(backoff.mark)
    assert not backoff.away
    assert not backoff.resting


def test_pauses_grow_after_a_wish_as_after_failures(backoff, clock):
    fail(backoff, retry_after=0)
    assert pauses(backoff, clock, 4) == [1, 2, 4, 8]
