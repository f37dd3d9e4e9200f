"""Runs ``whoami-router check`` as a process, and reads what it printed."""

import os
import subprocess
import sys

SECRET = "very-secret-token"


def check(*arguments, stdin=b"", **environment):
    """Run the command; return it when it has ended, with what it printed as text."""
    finished = subprocess.run(
        [sys.executable, "-m", "whoami_router", "check", *map(str, arguments)],
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    finished.stdout = finished.stdout.decode()
    finished.stderr = finished.stderr.decode()
    assert SECRET not in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished


def found(finished, status="wrong"):
    """Return the lines of this status, each with the remedy below it."""
    lines = finished.stdout.splitlines()
    return [
        line + (lines[number + 1] if "remedy: " in "".join(lines[number + 1 : number + 2]) else "")
        for number, line in enumerate(lines)
        if line.startswith(status)
    ]


def one_wrong(finished):
    assert finished.stderr == ""
    assert finished.returncode == 1
    [line] = found(finished)
    assert "remedy: " in line
    return line
