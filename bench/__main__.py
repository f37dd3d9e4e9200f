"""Runs the benchmarks: ``python -m bench``; writes build/bench and prints what it says there."""

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from bench.plot import draw
from bench.report import TARGETS, document
from bench.results import Results
from bench.standins import NGINX
from tests.stack.deployment import deployed

PARTS = ("hits", "counting", "processes", "misses", "memory", "syncs", "endpoints")
_OUTPUT = Path(__file__).parents[1] / "build/bench"


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="How many.")
@click.option(
    "--seconds",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="How long each load takes.",
)
@click.option(
    "--only",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    default=PARTS,
    show_default=True,
    help="A part of it; give it several times.",
)
def main(runs: int, seconds: int, parts: Sequence[str]) -> None:
    """Measure what whoami-router costs, beside what it is compared with.

    Whether a target holds is said in the output and not by the exit status: it depends on the
    machine. The environment variable NGINX names another nginx.
    """
    results = Results(_machine(runs, seconds))
    for part in (part for part in PARTS if part in parts):
        for _ in _runs(part, results, runs=runs, seconds=seconds):
            results.write(_OUTPUT / "results.json")  # what there is, should the next one fail
    _report(results)


def _runs(part: str, results: Results, *, runs: int, seconds: int) -> Iterator[None]:
    """Measure a part, yielding after each run."""
    measure = import_module(f"bench.{part}").measure  # each has modules of its own to import
    if part in ("syncs", "endpoints"):  # their runs share what it takes a while to start
        _say(f"{part}, {runs} runs")
        # Synapse answers fewer in the time; endpoints have a number of requests instead.
        measure(results, runs=runs, **({"seconds": 5 * seconds} if part == "syncs" else {}))
        yield
        return
    with ExitStack() as stack:
        options: dict[str, Any] = {} if part in ("memory", "counting") else {"seconds": seconds}
        if part == "misses":
            options["synapse"] = stack.enter_context(
                deployed(lambda what: _say(f"{part}: starting {what}"))
            )
        for run in range(1, runs + 1):
            _say(f"{part}, run {run} of {runs}")
            measure(results, **options)
            yield


def _report(results: Results) -> None:
    text = document(results)
    (_OUTPUT / "results.md").write_text(text)
    if any(series.part == "hits" for series in results):
        draw(results, _OUTPUT / "performance.svg")
    click.echo(text)
    failed = [target.name for target in TARGETS if target.verdict(results) == "does not hold"]
    click.echo(f"Targets that do not hold: {'; '.join(failed) or 'none'}.")
    click.echo(f"Written to {_OUTPUT}.")


def _machine(runs: int, seconds: int) -> dict[str, Any]:
    """Return what is known of where and how it is measured."""
    models = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    version = subprocess.run([NGINX, "-v"], check=True, capture_output=True, text=True).stderr
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {models[0] if models else '?'}",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "nginx": version.strip().rpartition("/")[2],
        "runs": runs,
        "seconds for each load": seconds,
    }


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main(prog_name="python -m bench")
