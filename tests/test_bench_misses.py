import pytest

from bench import memory, misses
from bench.results import Results


@pytest.fixture(scope="module")
def measured():
    results = Results()
    misses.measure(results, seconds=1, repeats=1)
    return results


@pytest.mark.parametrize("at", misses.AT_ONCE)
def test_lookups_have_every_figure(measured, at):
    for figure in ("rate", "lookup_us", "p50_ms", "p99_ms"):
        assert measured.get("misses", "stand-in", at, figure).median > 0


@pytest.mark.parametrize(
    "case",
    [
        *("hits alone", "hits during a storm", "the storm, with hits"),
        *("paced hits alone", "paced hits during a storm", "the storm, with paced hits"),
    ],
)
def test_storm_has_every_figure(measured, case):
    for figure in ("rate", "p50_ms", "p99_ms"):
        assert measured.get("storm", case, None, figure).median > 0


def test_there_is_nothing_about_synapse_without_one(measured):
    assert not any("Synapse" in series.case for series in measured)


def test_memory_has_every_figure():
    results = Results()
    memory.measure(results, tokens=2_000, at_edge=200)
    assert results.get("memory", "router", 2_000, "bytes_per_token").median > 0
    assert results.get("memory", "router, allocated", 2_000, "bytes_per_token").median > 0
    for figure in ("bytes_per_token", "nginx_bytes_per_token"):
        assert results.get("memory", "edge cache", 200, figure).median > 0
