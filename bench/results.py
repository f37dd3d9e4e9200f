"""What was measured: one value for each run, and the ratios between what ran side by side."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of one case, a value for each run, in the order of the runs.

    ``part`` is the benchmark ("hits", "misses", ...), ``case`` what was measured ("edge cache"),
    ``at`` how many tokens or lookups at once, where that is varied.
    """

    part: str
    case: str
    at: int | None
    figure: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)


class Results:
    """All series, and what is known of where they were measured."""

    def __init__(self, machine: dict[str, Any] | None = None) -> None:
        self.machine = machine or {}
        self._series: dict[tuple[str, str, int | None, str], Series] = {}

    def add(self, part: str, case: str, at: int | None, /, **figures: float) -> None:
        """Append what one run measured; each figure's name says its unit (``p99_ms``)."""
        for figure, value in figures.items():
            series = Series(part, case, at, figure)
            self._series.setdefault((part, case, at, figure), series).values.append(value)

    def get(self, part: str, case: str, at: int | None, figure: str) -> Series | None:
        """Return a series, or None if it was not measured."""
        return self._series.get((part, case, at, figure))

    def ratio(self, part: str, case: str, to: str, at: int | None, figure: str) -> Series | None:
        """Return one case's figure divided by another's, run by run."""
        above, below = (self.get(part, name, at, figure) for name in (case, to))
        if above is None or below is None:
            return None
        values = [a / b for a, b in zip(above.values, below.values, strict=True)]
        return Series(part, f"{case} / {to}", at, figure, values)

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": self.machine, "series": [asdict(series) for series in self]}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what was written."""
        content = json.loads(path.read_text())
        results = cls(content["machine"])
        for each in content["series"]:
            series = Series(**each)
            key = (series.part, series.case, series.at, series.figure)
            results._series[key] = series
        return results
