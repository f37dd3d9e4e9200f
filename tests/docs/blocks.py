"""The commands in the documents: each fenced block, and what is said of it just before it.

A block for a shell (``sh``, or ``console`` with the commands behind ``$``) is either run by a test,
or says what the test machine lacks:

    <!-- tests/docs/test_install.py::test_it_is_so runs this block -->
    <!-- tests/docs/test_install.py::test_it_is_so runs this block until it says so -->
    <!-- not run here: needs a Kubernetes cluster -->

What is to be seen stands behind the commands (``console``), or in a block of language ``text`` that
follows.
"""

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))

SHELLS = ("sh", "console")

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<marker>[^\n]*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_RUN_BY = re.compile(
    r"(?P<file>tests/\S+\.py)(::(?P<test>\w+))? runs this block( (?P<repeated>until it says so))?"
)
_NOT_RUN = re.compile(r"not run here: (?P<lacking>\S.*)")


_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it begins, its language, its text, the comment just before it.

    ``shown`` is the text of the block of language ``text`` that follows, if that is next: what
    whoever runs the commands is to see.
    """

    document: Path
    line: int
    language: str
    text: str
    marker: str | None
    shown: str | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def run_by(self) -> tuple[str, str | None] | None:
        """The file and the name of the test that runs it; None if none is named."""
        found = _RUN_BY.fullmatch(self.marker or "")
        return found and (found["file"], found["test"])

    @property
    def repeated(self) -> bool:
        """Whether it takes a while until one sees what is to be seen."""
        found = _RUN_BY.fullmatch(self.marker or "")
        return found is not None and found["repeated"] is not None

    @property
    def lacking(self) -> str | None:
        """What a machine needs to run it that the test machine lacks; None if none is named."""
        found = _NOT_RUN.fullmatch(self.marker or "")
        return found and found["lacking"]

    @property
    def commands(self) -> str:
        """What is typed."""
        if self.language == "sh":
            return self.text
        return "".join(f"{line[2:]}\n" for line in self.text.splitlines() if line[:2] == "$ ")

    @property
    def seen(self) -> list[str]:
        """The lines that are to be seen, in their order; others may be between them."""
        if self.language == "console":
            return [line for line in self.text.splitlines() if line[:2] not in ("$ ", "")]
        return [line for line in (self.shown or "").splitlines() if line]


def blocks(document: Path) -> list[Block]:
    """Return all fenced blocks of a document."""
    text = document.read_text()
    found = list(_BLOCK.finditer(text))
    result = []
    for each, following in zip_longest(found, found[1:]):
        shown = None
        if following and following["language"] == "text" and following["marker"] is None:
            between = text[each.end() : following.start()]
            # One sentence at most: what stands further away belongs to something else.
            shown = following["text"] if between.count("\n\n") <= 2 else None
        result.append(
            Block(
                document,
                text.count("\n", 0, each.start("indent")) + 1,
                each["language"],
                each["text"],
                each["marker"],
                shown,
            )
        )
    return result


def inline(document: Path) -> list[str]:
    """Return what stands between single backticks, a line each, in the document's prose."""
    return [" ".join(each.split()) for each in _CODE.findall(_BLOCK.sub("", document.read_text()))]


def not_seen(expected: list[str], output: str) -> list[str]:
    """Return the lines that are missing in the output, or are there in another order.

    ``...`` in a line stands for anything.
    """
    lines = iter(output.splitlines())
    missing = []
    for line in expected:
        pattern = re.escape(line.strip()).replace(re.escape("..."), ".*")
        if line.strip() == "...":
            continue
        if not any(re.fullmatch(pattern, actual.strip()) for actual in lines):
            missing.append(line)
    return missing
