"""What the figures say, in words and tables: pure functions of the results."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.results import Results, Series

# How each figure is headed, and with how many decimals it is written.
_FIGURES = {
    "rate": ("requests/s", 0),
    "p50_ms": ("median, ms", 2),
    "p99_ms": ("99 %, ms", 2),
    "nginx_us": ("nginx, µs CPU", 1),
    "router_us": ("service, µs CPU", 1),
    "call_us": ("µs each", 2),
    "lookup_us": ("router, µs CPU", 1),
    "bytes_per_token": ("bytes per token", 0),
    "nginx_bytes_per_token": ("in nginx", 0),
    "worker_cpu_ms": ("workers, ms CPU per sync", 2),
    "queries_per_sync": ("queries per sync", 1),
    "cache_hit_ratio": ("cache hits", 3),
    "unread_hit_ratio": ("of unread counts", 3),
    "syncs_per_s": ("syncs/s", 1),
    "transactions_per_request": ("transactions per request", 2),
    "misses_per_request": ("misses per request", 2),
    "cold_transactions_per_request": ("cold transactions per request", 2),
}
_PARTS = {
    "hits": ("Hits", "tokens"),
    "service": ("Hits, without nginx", "tokens"),
    "counting": ("What counting costs", ""),
    "processes": ("Several router processes", ""),
    "misses": ("Misses", "lookups at once"),
    "storm": ("Hits while many tokens are new", ""),
    "memory": ("Memory", "tokens"),
    "syncs": ("Real syncs", ""),
    "endpoints": ("Which endpoints gain by user", ""),
}
_COLUMNS = {
    "syncs": (
        "worker_cpu_ms",
        "queries_per_sync",
        "cache_hit_ratio",
        "unread_hit_ratio",
        "p50_ms",
        "p99_ms",
        "syncs_per_s",
    )
}
"""The figures of a part and their order, where that is not as they come."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure, or the ratio of two, is to be: at most or at least ``bound``."""

    name: str
    bound: float
    measured: Callable[[Results], Series | None]
    at_least: bool = True

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def verdict(self, results: Results) -> str:
        """Return whether the median of the runs is on the right side."""
        series = self.measured(results)
        if series is None:
            return "not measured here"
        holds = series.median >= self.bound if self.at_least else series.median <= self.bound
        return "holds" if holds else "does not hold"


def _rate(case: str, to: str, at: int) -> Callable[[Results], Series | None]:
    return lambda results: results.ratio("hits", case, to, at, "rate")


def _storm(hits: str) -> Callable[[Results], Series | None]:
    during, alone = f"{hits} during a storm", f"{hits} alone"
    return lambda results: results.ratio("storm", during, alone, None, "p99_ms")


def _growth(results: Results) -> Series | None:
    few, many = (results.get("service", "router", at, "rate") for at in (1_000, 200_000))
    if few is None or many is None:
        return None
    values = [b / a for a, b in zip(few.values, many.values, strict=True)]
    return Series("service", "router", None, "rate", values)


TARGETS = (
    Target(
        "edge cache / return 204, requests/s, 1 token",
        0.9,
        _rate("edge cache", "return 204", 1),
    ),
    Target(
        "edge cache / return 204, requests/s, 1,000 tokens",
        0.8,
        _rate("edge cache", "return 204", 1_000),
    ),
    Target(
        "edge cache / return 204, requests/s, 20,000 tokens",
        0.65,
        _rate("edge cache", "return 204", 20_000),
    ),
    *(
        Target(
            f"edge cache / njs, requests/s, {at:,} token{'s' if at > 1 else ''}",
            1.15,
            _rate("edge cache", "njs", at),
        )
        for at in (1, 1_000, 20_000, 200_000)
    ),
    Target(
        "router / constant ASGI, CPU per request, 1 token",
        1.25,
        lambda results: results.ratio("service", "router", "constant ASGI", 1, "router_us"),
        at_least=False,
    ),
    Target(
        "counting a hit / the hit, without HTTP",
        0.05,
        lambda results: results.ratio(
            "counting", "counting it", "a hit, without HTTP", None, "call_us"
        ),
        at_least=False,
    ),
    Target("router with 200,000 tokens / with 1,000, requests/s", 0.9, _growth),
    Target(
        "lookups/s: the router's / all that whoami of Synapse answers, 32 at once",
        2,
        lambda results: results.ratio("misses", "stand-in", "whoami of Synapse", 32, "rate"),
    ),
    *(
        Target(
            f"{hits} during a storm / {hits} alone, 99 %",
            2,
            _storm(hits),
            at_least=False,
        )
        for hits in ("hits", "paced hits")
    ),
    Target(
        "bytes per token, 100,000 tokens",
        600,
        lambda results: results.get("memory", "router", 100_000, "bytes_per_token"),
        at_least=False,
    ),
)


def document(results: Results) -> str:
    """Return everything as Markdown that is legible as plain text, too."""
    sections = [_machine(results), "## Targets\n\n" + targets(results)]
    for part in dict.fromkeys(series.part for series in results):
        title = _PARTS.get(part, (part, ""))[0]
        sections.append(f"## {title}\n\n{figures(results, part)}")
    return "\n".join(sections)


def figures(results: Results, part: str) -> str:
    """Return the table of a part: the median of each figure and, of several runs, the spread."""
    series = {(each.case, each.at, each.figure): each for each in results if each.part == part}
    rows = dict.fromkeys((case, at) for case, at, _ in series)
    columns = _COLUMNS.get(part) or tuple(dict.fromkeys(figure for _, _, figure in series))
    varied = any(at is not None for _, at in rows)
    headings = ["", *([_PARTS.get(part, ("", "at"))[1]] if varied else [])]
    headings += [_FIGURES.get(figure, (figure, 2))[0] for figure in columns]
    return _table(
        headings,
        (
            [
                case,
                *([f"{at:,}" if at is not None else ""] if varied else []),
                *(_cell(series.get((case, at, figure))) for figure in columns),
            ]
            for case, at in rows
        ),
    )


def targets(results: Results) -> str:
    """Return the table of the targets: each over the runs, and whether its median holds."""
    rows = []
    for target in TARGETS:
        series = target.measured(results)
        decimals = 0 if target.bound >= 10 else 2  # noqa: PLR2004  (no ratio is)
        measured = "" if series is None else _spread(series, decimals)
        rows.append([target.name, target.wanted, measured, target.verdict(results)])
    return _table(["target", "wanted", "measured", "verdict"], rows)


def _machine(results: Results) -> str:
    """Return what is known of where it was measured, an item each, and what could not be."""
    known = {key: value for key, value in results.machine.items() if key != "missing"}
    lines = [f"- {key}: {value}" for key, value in known.items()]
    for name, reason in results.machine.get("missing", {}).items():
        lines.append(f"- not measured: {name} ({reason})")
    return "".join(f"{line}\n" for line in lines)


def _cell(series: Series | None) -> str:
    if series is None:
        return ""
    return _spread(series, _FIGURES.get(series.figure, ("", 2))[1])


def _spread(series: Series, decimals: int) -> str:
    median = f"{series.median:,.{decimals}f}"
    if len(series.values) == 1:
        return median
    least, most = (f"{value:,.{decimals}f}" for value in series.spread)
    return f"{median} ({least}-{most})"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned, the first to the left."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headings))]

    def written(line: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |\n"

    rule = [widths[0] * "-", *("-" * (width - 1) + ":" for width in widths[1:])]
    return written(lines[0]) + written(rule) + "".join(map(written, lines[1:]))
