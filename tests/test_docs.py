"""What the documents quote is what was measured."""

import re
from pathlib import Path

import pytest

from bench import report
from bench.plot import draw
from bench.results import Results
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


PICTURE = ROOT / "docs/performance.svg"
PERFORMANCE = [
    ("performance.json", "targets"),
    *(
        ("performance.json", part)
        for part in (
            *("hits", "service", "counting", "processes", "misses", "storm", "memory", "syncs"),
            "endpoints",
        )
    ),
    ("performance-njs.json", "hits"),
]


@pytest.mark.parametrize(("file", "part"), PERFORMANCE)
def test_performance_tables_are_what_the_benchmark_wrote(file, part):
    results = Results.read(ROOT / "docs" / file)
    table = report.targets(results) if part == "targets" else report.figures(results, part)
    assert table in (ROOT / "docs/performance.md").read_text()


def test_readme_shows_a_picture_of_these_results(tmp_path):
    draw(Results.read(ROOT / "docs/performance.json"), tmp_path / "drawn.svg")
    shapes = [path.read_text().count("<path") for path in (tmp_path / "drawn.svg", PICTURE)]
    assert shapes[0] == shapes[1] > 10  # not to the byte: matplotlib's next version may differ
    assert "](docs/performance.svg)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))
def test_document_is_finished_and_what_it_names_exists(path):
    text = path.read_text()
    assert not re.findall(r"^[A-Z]{5,}$|\bTODO\b|\bFIXME\b", text, re.MULTILINE)
    named = re.findall(r"`((?:nginx|tests|bench|docs|deploy|whoami_router)/[\w./-]+\.\w+)`", text)
    named += re.findall(r"<!-- ((?:tests|bench)/\S+\.py)", text)
    linked = [path.parent / link for link in re.findall(r"\]\(([\w./-]+\.\w+)[)#]", text)]
    assert [each for each in (*(ROOT / name for name in named), *linked) if not each.exists()] == []
