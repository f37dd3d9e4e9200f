"""What was looked at, whether it is right, and what to do where it is not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WRONG, NOTE = "ok", "wrong", "note"

_LONGEST_QUOTE = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    ``status`` is ``ok``, ``wrong`` or ``note``: nothing is broken, but it is worth knowing.
    ``what`` says in a line what is true and what happens because of it, ``remedy`` what to do.
    ``place`` is ``file:line`` where a line of a configuration is meant.
    """

    part: str
    status: str
    what: str
    remedy: str | None = None
    place: str | None = None


def ok(part: str, what: str) -> Finding:
    """Return that this is right."""
    return Finding(part, OK, what)


def wrong(part: str, what: str, remedy: str, place: str | None = None) -> Finding:
    """Return that this is wrong, and the remedy."""
    return Finding(part, WRONG, what, remedy, place)


def note(part: str, what: str, remedy: str | None = None, place: str | None = None) -> Finding:
    """Return what is worth knowing."""
    return Finding(part, NOTE, what, remedy, place)


def all_well(findings: Sequence[Finding]) -> bool:
    """Return whether nothing is wrong."""
    return all(finding.status != WRONG for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Return the findings for people: a line each, and one below it for the remedy."""
    lines = []
    width = max((len(finding.part) for finding in findings), default=0)
    for finding in findings:
        place = f"{finding.place}: " if finding.place else ""
        lines.append(f"{finding.status:<5}  {finding.part:<{width}}  {place}{finding.what}")
        if finding.remedy is not None:
            lines.append(f"{'':{9 + width}}remedy: {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings for programs, to be written as JSON."""
    return {"ok": all_well(findings), "findings": [asdict(finding) for finding in findings]}


def quoted(text: str) -> str:
    """Return what a stranger sent so that it fits in a line and does nothing to a terminal."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    line = " ".join(printable.split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."
