"""What the page computes: its own functions in a browser, as tables."""

import pytest

from tests.status.answers import answer

NOON = 1_000_000_000_000  # of some day, in milliseconds
SECOND = 1000


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("a 1", {}, 1),
        ("a{} 1.5e3", {}, 1500),
        ('a{b="c"} 2 1700000000000', {"b": "c"}, 2),
        ('a{b="c",d="e",} 2', {"b": "c", "d": "e"}, 2),
        ('a{b="x\\\\y\\"z\\n{}} 1"} 3', {"b": 'x\\y"z\n{}} 1'}, 3),
        ('a{b=""} 4', {"b": ""}, 4),
        ("a\t5\r", {}, 5),
    ],
)
def test_samples_are_read_as_prometheus_writes_them(run, line, labels, value):
    code = (
        "const [[found, n]] = parse(arguments[0]).get('a'); return [Object.fromEntries(found), n]"
    )
    assert run(code, line) == [labels, value]


@pytest.mark.parametrize("line", ["", "# TYPE a counter", "a", "{b='c'} 1", "1a 2"])
def test_lines_that_are_no_samples_are_left_out(run, line):
    assert run("return parse(arguments[0]).size", line) == 0


def cache(n, start=1):
    return answer(start=start, resolves={"cache": n})


UNDATED = answer(start=None, resolves={"cache": 5, "none": 1})
UNDATED_AGAIN = answer(start=None, resolves={"cache": 3, "none": 2})
STEADY = [(2 * i, cache(10 * i)) for i in range(9)]


@pytest.mark.parametrize(
    ("answers", "counted", "seconds"),
    [
        ([(0, cache(5)), (2, cache(25))], {"cache": 20}, 2),
        # Begun again: all of it is new, also if it is more than before.
        ([(0, cache(5)), (2, cache(3, start=9))], {"cache": 3}, 2),
        ([(0, cache(5)), (2, cache(7, start=9))], {"cache": 7}, 2),
        ([(0, UNDATED), (2, UNDATED_AGAIN)], {"cache": 3, "none": 2}, 2),
        # Two processes that started together answer in turn.
        ([(0, cache(5)), (2, cache(3))], {"cache": 3}, 2),
        # No longer than six seconds back.
        (STEADY, {"cache": 30}, 6),
        # A source that is new, or was useless, tells no increase yet.
        ([(0, cache(5)), (2, answer(resolves={"cache": 6, "edge": 70}))], {"cache": 1}, 2),
        ([(0, cache("NaN")), (2, cache(6))], {}, 2),
        # Nothing over a gap.
        ([(0, cache(5)), (2, None), (4, cache(25))], {}, 0),
        ([(0, cache(5)), (2, None), (4, cache(25)), (6, cache(27))], {"cache": 2}, 2),
        # A hidden tab looks seldom.
        ([(0, cache(5)), (60, cache(65))], {"cache": 60}, 60),
    ],
)
def test_increase_is_what_was_counted_since(run, answers, counted, seconds):
    code = """const [lately] = after(arguments[0]);
        return [Object.fromEntries(lately.resolves), lately.seconds]"""
    timed = [[NOON + at * SECOND, text] for at, text in answers]
    assert run(code, timed) == [counted, seconds]


def test_clock_that_was_set_makes_no_rate(run):
    code = "const [lately] = after(arguments[0]); return [lately.seconds, page.points.length]"
    forward = [[NOON, cache(1), 0], [NOON + 300 * SECOND, cache(1000), 2 * SECOND]]
    assert run(code, forward) == [0, 2]
    assert run(code, [[NOON - 300 * SECOND, cache(1000), 4 * SECOND]]) == [0, 1]


def test_history_is_ten_minutes(run):
    answers = [[NOON + 2 * SECOND * i, cache(i)] for i in range(400)]
    assert run("after(arguments[0]); return page.points.length", answers) == 301


@pytest.mark.parametrize(
    ("share", "buckets", "seconds"),
    [
        (0.5, {"1": 10, "+Inf": 10}, 0.5),
        (0.5, {"1": 0, "2": 10, "+Inf": 10}, 1.5),
        (0.99, {"1": 98, "2": 100, "+Inf": 100}, 1.5),
        (0.5, {"2.5": 4, "0.5": 0, "+Inf": 8}, 2.5),  # in any order
        (0.99, {"1": 9, "+Inf": 10}, "Infinity"),
        (0.5, {"1": 0, "+Inf": 0}, "undefined"),
        (0.5, {}, "undefined"),
        (0.5, {"odd": 3}, "undefined"),
    ],
)
def test_quantile_is_prometheus_own(run, share, buckets, seconds):
    code = "return String(quantile(arguments[0], new Map(Object.entries(arguments[1]))))"
    assert run(code, share, buckets) == str(seconds)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("count(undefined)", "\u2013"),
        ("count(1234567)", "1,234,567"),
        ("count(12345678)", "12.3 M"),
        ("count(5e9)", "5.0 G"),
        ("rate(0)", "0"),
        ("rate(0.001)", "<0.01"),
        ("rate(0.25)", "0.25"),
        ("rate(12.34)", "12.3"),
        ("rate(1234.5)", "1,235"),
        ("percent(1)", "100%"),
        ("percent(0.99999)", "99.9%"),
        ("percent(0.00001)", "<0.1%"),
        ("percent(0)", "0%"),
        ("latency(0.00034)", "0.3 ms"),
        ("latency(0.0123)", "12 ms"),
        ("latency(1.25)", "1.3 s"),
        ("latency(Infinity)", "over 5 s"),
        ("latency(Infinity, 2.5)", "over 2.5 s"),
        ("duration(-3)", "0 s"),
        ("duration(59)", "59 s"),
        ("duration(3599)", "59 min"),
        ("duration(7260)", "2 h 1 min"),
        ("duration(90000)", "1 d 1 h"),
        ("plural(1, 'time')", "1 time"),
        ("plural(2, 'time')", "2 times"),
        ("linear(87, String).ticks.join()", "0,25,50,75,100"),
        ("linear(0, String).ticks.at(-1)", "0.1"),
        ("linear(3, String).ticks.join()", "0,1,2,3"),
    ],
)
def test_numbers_are_worded(run, code, text):
    assert str(run(f"return {code}")) == text


@pytest.mark.parametrize(
    ("grown", "fallbacks"),
    [
        ({"cache": 9}, 0),
        ({"stale": 1, "fingerprint": 2, "error": 3, "rejected": 4, "none": 5, "whoami": 6}, 6),
        ({"token": 7}, 0),  # as --native-tokens=decode wants it
        ({"token": 7, "unavailable": 1}, 7),
        ({"token": 7, "left_alone": 1}, 7),
    ],
)
def test_token_is_a_fallback_only_where_something_failed(run, grown, fallbacks):
    code = """const all = new Map(Object.entries(arguments[0]));
        return fallbacks({ resolves: all, lookups: all, shed: new Map() })"""
    assert run(code, grown) == fallbacks
