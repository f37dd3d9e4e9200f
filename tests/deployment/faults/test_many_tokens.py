"""Many tokens that the router does not know take nothing from those that it knows."""

import resource
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest

from tests.deployment.flood import flood
from tests.soak import SOAK, times
from tests.stack.process import wait_until
from tests.stack.relay import Relay

INVALID = "invalid-"
INVALID_TOKENS = times(100_000)
NEW_TOKENS = 2_000

# Ten times what it takes here; beyond three seconds nginx would give up and a user lose its worker.
KNOWN_WITHIN = 2

# As many a second as the two workers can serve that have not seen their users. More of them
# would not fit into the 50 connections that Synapse lets wait, and nginx would refuse some.
COLD_TOKENS = 500
COLD_RATE = 100

# Fewer than lookups may run: each token is looked up.
CONNECTIONS = 32


def test_invalid_tokens_push_out_no_known_user(front, deployment, known, figures):
    # Synapse itself would take minutes.
    relay = Relay(deployment.main.addresses[1], rejected_prefix=INVALID)
    running = front(relay=relay)
    running.learn(known)
    counts = relay.count_anew()
    before = memory(running.router)
    with running.load(cycle(known)) as load:
        began = time.monotonic()
        sources = flood(
            running.router.address.removeprefix("unix:"),
            (f"{INVALID}{number}" for number in range(INVALID_TOKENS)),
            connections=CONNECTIONS,
            times=2,
        )
        seconds = time.monotonic() - began
    grown = (memory(running.router) - before) / 2**20
    figures.record(
        "100,000 invalid tokens",
        load.results,
        f"{INVALID_TOKENS / seconds:,.0f} tokens a second",
        f"{counts.most_of_a_token} lookup of each at most",
        f"the router grew by {grown:.0f} MiB",
    )
    assert sources == {"rejected": 2 * INVALID_TOKENS}
    assert (counts.tokens, counts.most_of_a_token) == (INVALID_TOKENS, 1)
    assert load.results.failed == []
    assert load.results.sources == {"cache"}
    assert all(counts.of(device.token) == 0 for device in known)
    assert load.results.scattered == set()
    assert grown < 64


def memory(process):
    """Returns how many bytes of memory the process has."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture
def many_files():
    """Lets the test have as many connections as it likes; a desktop allows it 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("lookups", [64, 8])
def test_new_tokens_at_once_are_looked_up_a_few_at_a_time(
    front, known, new_devices, figures, lookups
):
    running = front("--max-lookups", str(lookups))
    running.learn(known)
    rounds = [
        [device.token for device in new_devices(NEW_TOKENS, users=400)] for _ in range(times(1))
    ]
    path = running.router.address.removeprefix("unix:")
    counts = running.relay.count_anew()
    at_once, calm = Counter(), Counter()
    with running.load(cycle(known)) as load:
        wait_until(lambda: len(load.results) > 200, "known users sync")
        # Not by nginx: what so many syncs cost Synapse would hide what they cost the router.
        began = time.monotonic()
        for new in rounds:
            at_once += flood(path, new, connections=len(new))
            calm += flood(path, new, connections=lookups)
        ended = time.monotonic()
    before, during = load.results.between(0, began), load.results.between(began, ended)
    figures.record(
        f"2,000 new tokens at once, {lookups} lookups at a time",
        during,
        f"99% within {before.quantile(0.99) * 1000:.0f} ms before",
        f"of the new {at_once['whoami']:,} were looked up at once",
        f"{counts.most_in_flight} lookups at a time",
    )
    assert set(at_once) == {"whoami", "fingerprint"}
    assert set(calm) <= {"whoami", "cache"}
    assert counts.most_in_flight == lookups
    assert load.results.failed == []
    assert load.results.sources == {"cache"}
    assert during.quantile(0.99) < KNOWN_WITHIN


def test_cold_start_fails_no_request(front, new_devices, figures):
    running = front()
    # What systemd allows a service.
    resource.prlimit(running.router.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    new = new_devices(times(COLD_TOKENS), users=200)
    counts = running.relay.count_anew()
    with running.load(new, rate=COLD_RATE) as load:
        wait_until(lambda: not load.running, "every device has synced", seconds=60 * SOAK)
    figures.record(
        "cold start, 100 new tokens a second",
        load.results,
        f"{counts.requests} were looked up, {counts.most_in_flight} at a time",
    )
    assert load.results.total == len(new)
    assert load.results.failed == []
    assert load.results.sources <= {"whoami", "fingerprint"}
    assert counts.most_of_a_token == 1
