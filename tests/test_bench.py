import re

import pytest

from bench import counting, hits, processes, report
from bench.plot import draw
from bench.results import Results
from bench.sites import CONTENDERS

SIZES = (1, 1_000, 20_000, 200_000)


def made_up(*runs):
    """Return results from (part, case, at, {figure: value}), run by run."""
    results = Results()
    for part, case, at, figures in runs:
        results.add(part, case, at, **figures)
    return results


def hit_rates(**rates):
    """Return results of one run with these rates, whatever the number of tokens."""
    return made_up(
        *(
            ("hits", case.replace("_", " "), at, {"rate": rate})
            for case, rate in rates.items()
            for at in SIZES
        )
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(table):
    """Return the rows of a Markdown table as dictionaries."""
    headings, _, *lines = table.splitlines()
    return [dict(zip(cells(headings), cells(line), strict=True)) for line in lines]


def verdicts(results):
    """Return what is said of each target that was measured."""
    return {
        row["target"]: (row["measured"], row["verdict"])
        for row in rows(report.targets(results))
        if row["verdict"] != "not measured here"
    }


def test_nothing_measured_is_said_to_be_so():
    table = rows(report.targets(Results()))
    assert len(table) == len(report.TARGETS)
    assert {(row["measured"], row["verdict"]) for row in table} == {("", "not measured here")}


@pytest.mark.parametrize(
    ("edge_cache", "holding"),
    [
        (90, {1, 1_000, 20_000}),
        (89.9, {1_000, 20_000}),
        (80, {1_000, 20_000}),
        (79, {20_000}),
        (65, {20_000}),
        (64, set()),
    ],
)
def test_edge_cache_is_held_against_the_floor(edge_cache, holding):
    results = hit_rates(edge_cache=edge_cache, return_204=100)
    assert {said for _, said in verdicts(results).values()} <= {"holds", "does not hold"}
    assert [said for _, said in verdicts(results).values()] == [
        "holds" if at in holding else "does not hold" for at in (1, 1_000, 20_000)
    ]


@pytest.mark.parametrize(("njs", "said"), [(100, "holds"), (101, "does not hold")])
def test_edge_cache_is_held_against_njs_at_every_size(njs, said):
    assert [row[1] for row in verdicts(hit_rates(edge_cache=115, njs=njs)).values()] == [said] * 4


@pytest.mark.parametrize(
    ("runs", "measured", "said"),
    [
        (
            [
                ("service", "router", 1, {"router_us": 30.0}),
                ("service", "constant ASGI", 1, {"router_us": 24.0}),
            ],
            "1.25",
            "holds",
        ),
        (
            [
                ("service", "router", 1, {"router_us": 31.0}),
                ("service", "constant ASGI", 1, {"router_us": 24.0}),
            ],
            "1.29",
            "does not hold",
        ),
        (
            [
                ("service", "router", 1_000, {"rate": 100}),
                ("service", "router", 200_000, {"rate": 90}),
            ],
            "0.90",
            "holds",
        ),
        (
            [
                ("service", "router", 1_000, {"rate": 100}),
                ("service", "router", 200_000, {"rate": 80}),
            ],
            "0.80",
            "does not hold",
        ),
        (
            [
                ("misses", "stand-in", 32, {"rate": 3000}),
                ("misses", "whoami of Synapse", 32, {"rate": 500}),
            ],
            "6.00",
            "holds",
        ),
        (
            [
                ("misses", "stand-in", 32, {"rate": 900}),
                ("misses", "whoami of Synapse", 32, {"rate": 500}),
            ],
            "1.80",
            "does not hold",
        ),
        (
            [
                ("storm", "hits during a storm", None, {"p99_ms": 2}),
                ("storm", "hits alone", None, {"p99_ms": 1}),
            ],
            "2.00",
            "holds",
        ),
        (
            [
                ("storm", "hits during a storm", None, {"p99_ms": 3}),
                ("storm", "hits alone", None, {"p99_ms": 1}),
            ],
            "3.00",
            "does not hold",
        ),
        (
            [
                ("storm", "paced hits during a storm", None, {"p99_ms": 2}),
                ("storm", "paced hits alone", None, {"p99_ms": 1}),
            ],
            "2.00",
            "holds",
        ),
        (
            [
                ("storm", "paced hits during a storm", None, {"p99_ms": 3}),
                ("storm", "paced hits alone", None, {"p99_ms": 1}),
            ],
            "3.00",
            "does not hold",
        ),
        ([("memory", "router", 100_000, {"bytes_per_token": 600})], "600", "holds"),
        ([("memory", "router", 100_000, {"bytes_per_token": 601})], "601", "does not hold"),
    ],
)
def test_target_is_held_against_what_was_measured(runs, measured, said):
    assert list(verdicts(made_up(*runs)).values()) == [(measured, said)]


def test_cpu_and_growth_of_the_router_are_judged_without_nginx():
    # Behind nginx it shares a processor with whoever loads it.
    results = made_up(
        ("hits", "router", 1, {"router_us": 30}),
        ("hits", "constant ASGI", 1, {"router_us": 10}),
        ("hits", "router", 1_000, {"rate": 100}),
        ("hits", "router", 200_000, {"rate": 50}),
    )
    assert verdicts(results) == {}


def test_ratio_is_of_what_ran_side_by_side_and_its_median_counts():
    # A machine that was twice as fast in one run was so for both.
    results = made_up(
        *(
            ("hits", case, 1, {"rate": rate})
            for run in ((92, 100), (190, 200), (70, 100))
            for case, rate in zip(("edge cache", "return 204"), run, strict=True)
        )
    )
    assert list(verdicts(results).values()) == [("0.92 (0.70-0.95)", "holds")]


def test_table_has_the_median_of_the_runs_and_their_spread():
    results = made_up(
        ("hits", "router", 1_000, {"rate": 10_000, "router_us": 30.04}),
        ("hits", "router", 1_000, {"rate": 12_000, "router_us": 28}),
        ("hits", "router", 1_000, {"rate": 9_000, "router_us": 40}),
        ("hits", "token map", 1_000, {"rate": 30_000}),
    )
    assert rows(report.figures(results, "hits")) == [
        {
            "": "router",
            "tokens": "1,000",
            "requests/s": "10,000 (9,000-12,000)",
            "service, µs CPU": "30.0 (28.0-40.0)",
        },
        {"": "token map", "tokens": "1,000", "requests/s": "30,000", "service, µs CPU": ""},
    ]


def test_real_syncs_have_a_table_of_their_own():
    cases = ("by user", "by token", "round robin")
    results = made_up(
        *(
            (
                "syncs",
                case,
                None,
                {
                    "p50_ms": 3,
                    "p99_ms": 20,
                    "syncs_per_s": 250,
                    "cache_hit_ratio": 0.9,
                    "unread_hit_ratio": 0.8,
                    "queries_per_sync": 12,
                    "worker_cpu_ms": 4,
                },
            )
            for case in cases
        )
    )
    table = rows(report.figures(results, "syncs"))
    assert [row[""] for row in table] == list(cases)
    assert list(table[0].values())[1:] == [
        *("4.00", "12.0", "0.900", "0.800"),
        *("3.00", "20.00", "250.0"),
    ]


def test_endpoints_have_a_row_for_each_group_and_routing_and_no_times():
    cases = ("receipts, by user", "receipts, by token", "receipts, by room", "keys, by user")
    figures = {
        "transactions_per_request": 1.5,
        "cache_hit_ratio": 0.9876,
        "misses_per_request": 0.25,
        "cold_transactions_per_request": 4,
    }
    runs = [("endpoints", case, None, figures) for case in cases]
    again = ("endpoints", cases[0], None, {**figures, "transactions_per_request": 1.7})
    results = made_up(*runs, again)
    table = rows(report.figures(results, "endpoints"))
    assert [row[""] for row in table] == list(cases)
    assert table[0]["transactions per request"] == "1.60 (1.50-1.70)"
    assert table[1] == {
        "": "receipts, by token",
        "transactions per request": "1.50",
        "cache hits": "0.988",
        "misses per request": "0.25",
        "cold transactions per request": "4.00",
    }
    assert "## Which endpoints gain by user" in report.document(results)


def test_document_says_what_could_not_be_measured():
    results = Results({"nginx": "1.22.1", "missing": {"njs": "unknown directive"}})
    results.add("hits", "router", 1, rate=1)
    text = report.document(results)
    assert "nginx: 1.22.1" in text
    assert "not measured: njs (unknown directive)" in text
    assert "## Targets" in text
    assert "## Hits" in text


def test_picture_is_the_same_each_time_small_and_names_no_other_host(tmp_path):
    results = Results()
    for number, contender in enumerate(CONTENDERS):
        for at in SIZES:
            for run in (1, 1.1):
                results.add("hits", contender.name, at, rate=(number + 1) * run * 1000)
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for picture in pictures:
        draw(results, picture)
    first, second = (picture.read_text() for picture in pictures)
    assert first == second
    assert len(first) < 150_000
    assert set(re.findall(r"\w+://([^/\"]+)", first)) <= {"www.w3.org"}


@pytest.fixture(scope="module")
def measured():
    results = Results()
    hits.measure(results, seconds=1, sizes=(1, 50), repeats=1)
    return results


def test_every_contender_has_every_figure(measured):
    missing = measured.machine["missing"]
    for contender in CONTENDERS:
        if contender.name in missing:
            continue
        figures = ["rate", "p50_ms", "p99_ms", "nginx_us"]
        if contender.asks in ("router", "constant"):
            figures.append("router_us")
        for at in (1, 50):
            for figure in figures:
                assert measured.get("hits", contender.name, at, figure).median > 0


def test_edge_cache_is_asked_in_the_worst_order_too(measured):
    for figure in ("rate", "p50_ms", "p99_ms", "nginx_us", "router_us"):
        assert measured.get("hits", "edge cache, in turn", 50, figure).median > 0
    # One token has no order.
    assert measured.get("hits", "edge cache, in turn", 1, "rate") is None


@pytest.mark.parametrize("case", ["router", "constant ASGI"])
def test_service_is_measured_without_nginx(measured, case):
    for at in (1, 50):
        for figure in ("rate", "p50_ms", "p99_ms", "router_us"):
            assert measured.get("service", case, at, figure).median > 0


def test_nothing_else_is_measured_without_nginx(measured):
    cases = {series.case for series in measured if series.part == "service"}
    assert cases == {"router", "constant ASGI"}


def test_only_what_an_nginx_may_lack_is_missing(measured):
    assert set(measured.machine["missing"]) <= {"njs", "Lua"}


def test_one_and_two_router_processes_have_every_figure():
    results = Results()
    processes.measure(results, seconds=1, repeats=1)
    for case in (
        f"{count}, {how}"
        for count in ("one process", "two processes")
        for how in ("through nginx", "asked directly")
    ):
        for figure in ("rate", "p50_ms", "p99_ms", "router_us"):
            assert results.get("processes", case, None, figure).median > 0
    assert "## Several router processes" in report.document(results)


def test_each_of_two_router_processes_works():
    with processes.started() as cases:
        assert [len(routed.routers) for routed in cases.values()] == [1, 2]
        _, used = cases["two processes"].load(1)
    assert len(used) == 2
    # Idle, it has some as well.
    assert min(used) > max(used) / 4


def test_counting_has_every_figure():
    results = Results()
    counting.measure(results, calls=1000, reads=2)
    cases = ("a hit, without HTTP", "counting it", "counting it by prometheus_client")
    assert {series.case for series in results} == {*cases, "reading /metrics"}
    assert all(series.figure == "call_us" for series in results)
