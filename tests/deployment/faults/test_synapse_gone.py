"""When Synapse cannot be asked, known users notice nothing and new tokens hardly anything."""

import signal
import time
from itertools import cycle

import pytest

from tests.deployment.faults.conftest import RATE as RATE_OF_KNOWN
from tests.soak import SOAK
from tests.stack.process import wait_until
from tests.stack.relay import Fault

# Seconds that the router waits for Synapse, here, and that it leaves it alone at most.
WHOAMI_TIMEOUT = 1
LONGEST_PAUSE = 10

# New tokens a second, and for how long.
RATE = 20
SECONDS = 4 * SOAK


def misbehave(fault):
    def begin(running, _main):
        running.relay.fault = fault

    return begin


FAULTS = {
    "Synapse's main process stopped": lambda _, main: main.send_signal(signal.SIGSTOP),
    "Synapse's main process killed": lambda _, main: main.kill(),
    "whoami refuses connections": misbehave(Fault.REFUSE),
    "whoami answers 500": misbehave(Fault.ERROR),
    "whoami answers 429": misbehave(Fault.LIMIT),
    "whoami answers 429 with Retry-After": misbehave(Fault.LIMIT_WITH_RETRY_AFTER),
    "whoami answers garbage": misbehave(Fault.GARBAGE),
    "whoami answers half": misbehave(Fault.HALF),
    "whoami answers a byte each second": misbehave(Fault.DRIP),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_known_users_notice_nothing_and_new_ones_only_at_first(
    front, main, known, new_devices, figures, fault
):
    running = front("--whoami-timeout", str(WHOAMI_TIMEOUT))
    running.learn(known)
    new = new_devices(round(RATE * SECONDS), users=40)
    counts = running.relay.count_anew()
    began = time.monotonic()
    FAULTS[fault](running, main)
    with running.load(cycle(known)) as old_load, running.load(new, rate=RATE) as new_load:
        wait_until(lambda: not new_load.running, "new tokens are used", seconds=SECONDS + 30)
    old, new = old_load.results, new_load.results
    later = new.between(began + WHOAMI_TIMEOUT + 0.5)
    figures.record(
        fault,
        old,
        f"{new.total} new tokens: {len(new.failed)} failed, slowest {new.slowest * 1000:.0f} ms, "
        f"from {WHOAMI_TIMEOUT + 0.5} s on {later.slowest * 1000:.0f} ms",
        f"{counts.requests} lookups",
    )
    assert old.failed == []
    assert old.sources == {"cache"}
    assert old.slowest < WHOAMI_TIMEOUT
    assert old.scattered == set()
    assert new.failed == []
    assert new.sources == {"fingerprint"}
    assert later.slowest < WHOAMI_TIMEOUT
    # Those that run before the first gives up, three failures, and a few to see if it is back.
    assert counts.requests <= RATE * WHOAMI_TIMEOUT + 3 + 5 * SOAK
    assert counts.requests < new.total / 2


@pytest.mark.parametrize("fault", ["Synapse's main process stopped", "whoami answers 500"])
def test_users_whose_answers_are_old_stay_in_place_and_wait_only_at_first(
    front, main, known, fault
):
    """Every answer expires within a second, so each user would have to be looked up again."""
    running = front("--whoami-timeout", str(WHOAMI_TIMEOUT), "--cache-ttl", "1")
    running.learn(known)
    began = time.monotonic()
    FAULTS[fault](running, main)
    with running.load(cycle(known)) as load:
        wait_until(
            lambda: load.results.total > 8 * RATE_OF_KNOWN * SOAK, "known users sync", seconds=60
        )
    later = load.results.between(began + 2 * WHOAMI_TIMEOUT + 0.5)
    assert load.results.failed == []
    assert load.results.sources == {"cache", "stale"}
    assert load.results.scattered == set()
    assert later.sources == {"stale"}
    assert later.slowest < WHOAMI_TIMEOUT


def test_synapse_that_is_back_is_asked_again(front, main, known, new_devices, figures):
    running = front("--whoami-timeout", str(WHOAMI_TIMEOUT))
    running.learn(known)
    seconds = 20 * SOAK  # until the pauses are as long as they get
    new = new_devices(round(10 * (seconds + LONGEST_PAUSE + WHOAMI_TIMEOUT + 5)), users=40)
    with running.load(cycle(known)) as old_load, running.load(new, rate=10) as new_load:
        main.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: time.monotonic() > stopped + seconds, "long pauses", seconds=2 * seconds)
        assert new_load.results.sources == {"fingerprint"}
        main.send_signal(signal.SIGCONT)
        back = time.monotonic()
        wait_until(
            lambda: "whoami" in new_load.results.sources,
            "Synapse is asked again",
            seconds=LONGEST_PAUSE + WHOAMI_TIMEOUT,
        )
        asked = time.monotonic() - back
    requests = old_load.results
    figures.record("Synapse's main process back", requests, f"asked again after {asked:.1f} s")
    assert requests.failed == []
    assert new_load.results.failed == []
