"""The instruments: wrk for load, the kernel's own count for CPU time, processors of one's own."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CPUS = sorted(os.sched_getaffinity(0))
"""The processors there are. What is measured has the first, whoever loads it the others."""

# What wrk says in the end, in a form that nobody has to guess at.
_DONE = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.stderr:write(string.format(
        '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\\n',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""

# Instead: ends wrk as soon as so many requests are answered.
_ONCE = """
local left, failed = {count}, 0
function response(status)
    if status ~= 200 then failed = failed + 1 end
    left = left - 1
    if left == 0 then
        io.stderr:write(failed, '\\n')
        os.exit(0)
    end
end
"""


class Failed(Exception):  # noqa: N818  (of a load: some of it failed)
    """What was to be measured does not work."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return how long these processes and their threads have been on a processor."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, nginx's workers for one."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def pin(pids: Iterable[int], cpus: Sequence[int]) -> None:
    """Keep processes, and what they start from now on, on these processors."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cpus)


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk measured."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def wrk(
    url: str,
    script: str,
    *,
    connections: int,
    seconds: float,
    cpus: Sequence[int] = CPUS[1:] or CPUS,
) -> Load:
    """Send requests as fast as they are answered, each built by ``script`` (wrk's Lua).

    For whole seconds: wrk knows no others, and what is between them is rounded up.
    """
    whole = math.ceil(seconds)
    said = _run_wrk(url, script + _DONE, connections=connections, seconds=whole, cpus=cpus)
    return Load(**json.loads(said))


def send(
    url: str,
    script: str,
    *,
    count: int,
    connections: int,
    seconds: float,
    cpus: Sequence[int] = CPUS[1:] or CPUS,
) -> None:
    """Send requests until so many are answered with 200; raise Failed if one is not, in time."""
    script += _ONCE.format(count=count)
    said = _run_wrk(url, script, connections=connections, seconds=math.ceil(seconds), cpus=cpus)
    if said != "0":
        raise Failed(f"of {count} requests to {url}: {said or 'some not answered in time'}")


def _run_wrk(url: str, script: str, *, connections: int, seconds: int, cpus: Sequence[int]) -> str:
    """Return the last line that the script wrote to stderr."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        ended = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cpus)), *words, "-s", file.name, url],
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
    return (ended.stderr.splitlines() or [""])[-1]
