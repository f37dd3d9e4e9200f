"""The hits as a picture: requests per second of each contender."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Results, Series

# Ours in strong colours, what it is compared with in quieter ones.
_COLOURS = {
    "no auth_request": "#8c8c8c",
    "token map": "#b08d57",
    "return 204": "#404040",
    "edge cache": "#c2185b",
    "Lua": "#2e8b57",
    "njs": "#e08214",
    "router": "#1565c0",
    "constant ASGI": "#7aa6d8",
}
_OURS = ("edge cache", "router")

_STYLE = {
    "svg.hashsalt": "whoami-router",  # or the names inside the file differ each time
    "svg.fonttype": "path",  # the same on every machine, whatever fonts it has
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def draw(results: Results, path: Path) -> None:
    """Write an SVG: bars for one token, lines over the number of tokens.

    The same results make the same file.
    """
    rates = [
        each
        for each in results
        if each.part == "hits" and each.figure == "rate" and each.case in _COLOURS
    ]
    with mpl.rc_context(_STYLE):
        # Opaque: its dark text is to be read on a dark page, too.
        figure = Figure(figsize=(8.8, 3.9), layout="constrained", facecolor="white")
        bars, lines = figure.subplots(1, 2, width_ratios=(1, 1.15))
        _draw_bars(bars, rates)
        _draw_lines(lines, rates)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _draw_bars(axes: Axes, rates: list[Series]) -> None:
    least = min((each.at or 0 for each in rates), default=0)
    hot = sorted((each for each in rates if each.at == least), key=lambda each: each.median)
    axes.set_title(f"{least:,} token{'' if least == 1 else 's'}, requests/s")
    drawn = axes.barh(
        [each.case for each in hot],
        [each.median for each in hot],
        xerr=[
            [each.median - each.spread[0] for each in hot],
            [each.spread[1] - each.median for each in hot],
        ],
        error_kw={"linewidth": 0.8, "ecolor": "#00000080"},
        color=[_COLOURS.get(each.case, "black") for each in hot],
        height=0.7,
    )
    axes.bar_label(drawn, [f"{each.median:,.0f}" for each in hot], padding=4)
    axes.margins(x=0.22)
    axes.set_xticks([])
    axes.spines.bottom.set_visible(False)
    axes.tick_params(left=False)
    for label in axes.get_yticklabels():
        if label.get_text() in _OURS:
            label.set_fontweight("bold")


def _draw_lines(axes: Axes, rates: list[Series]) -> None:
    axes.set_title("by the number of tokens in use, requests/s")
    sizes = sorted({each.at for each in rates})
    ends = []
    for case in dict.fromkeys(each.case for each in rates):
        points = sorted((each for each in rates if each.case == case), key=lambda each: each.at)
        ours = case in _OURS
        axes.plot(
            [sizes.index(each.at) for each in points],
            [each.median for each in points],
            color=_COLOURS.get(case, "black"),
            linewidth=2.2 if ours else 1.2,
            marker="o",
            markersize=4.5 if ours else 3,
            zorder=3 if ours else 2,
        )
        ends.append((points[-1].median, case))
    axes.set_xticks(range(len(sizes)), [f"{at:,}" for at in sizes])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.06)  # room for the names
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: list[tuple[float, str]]) -> None:
    """Write each line's name beside its end, and no name over another."""
    apart = axes.get_ylim()[1] / 16
    lowest = 0.0
    for height, case in sorted(ends):
        lowest = max(height, lowest)
        axes.annotate(
            case,
            (1.02, lowest),
            xycoords=("axes fraction", "data"),
            color=_COLOURS.get(case, "black"),
            fontweight="bold" if case in _OURS else "normal",
            va="center",
        )
        lowest += apart
