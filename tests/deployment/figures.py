"""What was measured during each fault, as a table for people."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.deployment.load import Requests
from tests.soak import SOAK

FIGURES = Path(
    os.environ.get("WHOAMI_ROUTER_FAULT_FIGURES", Path(__file__).parents[2] / "build" / "faults.md")
)

_NOT_DELAYED = "no failed request, no delay but the first lookups'"
_KNOWN_WITHIN = "no failed request, 99% of known users' within 2 s"

ALLOWED: Mapping[str, str] = MappingProxyType(
    {
        "router killed and restarted, 20 times": "no failed request",
        "router stopped for 10 s": "no failed request, none slower than nginx's 3 s and a sync",
        "Synapse's main process stopped": _NOT_DELAYED,
        "Synapse's main process killed": _NOT_DELAYED,
        "whoami refuses connections": _NOT_DELAYED,
        "whoami answers 500": _NOT_DELAYED,
        "whoami answers 429": _NOT_DELAYED,
        "whoami answers 429 with Retry-After": _NOT_DELAYED,
        "whoami answers garbage": _NOT_DELAYED,
        "whoami answers half": _NOT_DELAYED,
        "whoami answers a byte each second": _NOT_DELAYED,
        "Synapse's main process back": "asked again within 10 s and the timeout",
        "100,000 invalid tokens": "known users stay known; a lookup per token at most",
        "cold start, 100 new tokens a second": "no failed request",
        "2,000 new tokens at once, 64 lookups at a time": _KNOWN_WITHIN,
        "2,000 new tokens at once, 8 lookups at a time": _KNOWN_WITHIN,
        "no file descriptor left for the router": "no failed request, recovers by itself",
        "router's socket deleted": "no failed request; the router notices and ends",
        "clock a day back, a day forward": "no failed request, answers expire as before",
        "router restarted, making its socket": "no failed request",
        "router restarted, inheriting its socket": "no failed request",
    }
)
"""Each fault and what clients may see of it, in the order of the table."""


class Figures:
    """A row per fault that happened."""

    def __init__(self) -> None:
        self._rows: dict[str, str] = {}

    def record(self, fault: str, requests: Requests, *also: str) -> None:
        """Note what clients saw during a fault of ALLOWED, and what else was measured."""
        cells = (
            fault,
            ALLOWED[fault],
            f"{requests.total:,}",
            f"{len(requests.failed):,}",
            f"{requests.quantile(0.5) * 1000:.0f} ms",
            f"{requests.quantile(0.99) * 1000:.0f} ms",
            f"{requests.slowest * 1000:.0f} ms",
            "; ".join(also),
        )
        self._rows[fault] = f"| {' | '.join(cells)} |"

    def write(self, path: Path = FIGURES) -> None:
        """Write the table, unless nothing was noted."""
        if not self._rows:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [self._rows[fault] for fault in ALLOWED if fault in self._rows]
        notes = [] if SOAK == 1 else ["", f"Counts and durations are {SOAK:g} times those named."]
        path.write_text("\n".join([_HEADER, *rows, *notes]) + "\n")


_HEADER = """\
| fault | clients may see | requests | failed | median | 99% within | slowest | besides |
|---|---|---|---|---|---|---|---|"""
