"""Tokens of a whole session, where none should be."""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.stack.matrix import TOKENS

# What a token is made of whose text is the same everywhere: encoded for a query, too.
_WORD = re.compile(r"[A-Za-z0-9_-]{20,}")


def disclosed(directories: Iterable[Path]) -> dict[Path, set[str]]:
    """Return, of the logs of routers and nginx below, those that show the token of a device."""
    logs = [
        path
        for directory in directories
        for path in directory.rglob("*.log")
        if path.name in ("router.log", "nginx.log")
    ]
    assert logs, "there are no logs"
    shown = {
        log: TOKENS.intersection(_WORD.findall(log.read_text(errors="replace"))) for log in logs
    }
    return {log: tokens for log, tokens in shown.items() if tokens}
