"""What the documents quote is what was measured."""

from pathlib import Path

import pytest

from tests.deployment.figures import ALLOWED

ROOT = Path(__file__).parents[1]


def table(path, first_heading):
    """Return the rows of a Markdown table as dictionaries."""
    lines = iter(path.read_text().splitlines())
    headings = next(cells(line) for line in lines if line.startswith(f"| {first_heading} |"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(headings, cells(line), strict=True)))
    return rows


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def measured():
    return table(ROOT / "docs/faults.md", "fault")


def test_every_fault_has_its_figures(measured):
    assert [(row["fault"], row["clients may see"]) for row in measured] == list(ALLOWED.items())
    assert {row["failed"] for row in measured} == {"0"}


def test_readme_quotes_what_was_measured(measured):
    quoted = table(ROOT / "README.md", "fault")
    assert len(quoted) >= 10
    figures = {row["fault"]: row for row in measured}
    for row in quoted:
        assert row.items() <= figures[row["fault"]].items()
