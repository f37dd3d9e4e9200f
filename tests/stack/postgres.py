"""PostgreSQL for Synapse: a cluster of its own that is forgotten afterwards."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.stack.process import DidNotHappen, Process

USER = "synapse"

# initdb makes it, and nobody else uses this server.
DATABASE = "postgres"


class Postgres(Process):
    """PostgreSQL on a UNIX socket in ``directory``, where everyone may connect as USER."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "postgres"
        self._data = self.directory / "data"
        self._programs = _programs()
        super().__init__(
            "PostgreSQL",
            [
                self._programs / "postgres",
                *("-D", self._data, "-k", self.directory),
                # No TCP; and a power failure may take it all.
                *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off"),
            ],
            directory / "postgres.log",
            ready=self._answers,
            user=_unprivileged_user(),
        )

    def spawn(self) -> Self:
        if not self._data.exists():
            self._initialise()
        return super().spawn()

    def stop(self, number: signal.Signals = signal.SIGINT, *, seconds: float = 20) -> None:
        # At SIGTERM it would wait until the last client has gone.
        super().stop(number, seconds=seconds)

    def run(self, script: str, **variables: str) -> None:
        """Run an SQL script for psql, which takes these as its variables."""
        subprocess.run(
            [
                *(self._programs / "psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"),
                *("-h", self.directory, "-U", USER, DATABASE),
                *(f"--set={name}={value}" for name, value in variables.items()),
            ],
            input=script,
            text=True,
            check=True,
            cwd="/",
        )

    def _initialise(self) -> None:
        self.directory.mkdir()
        if self._user:
            shutil.chown(self.directory, self._user)
        made = subprocess.run(
            [
                *(self._programs / "initdb", "-D", self._data, "--no-sync"),
                *("--username", USER, "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C"),  # Synapse accepts no other
            ],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )
        if made.returncode:
            raise DidNotHappen(f"initdb ended with status {made.returncode}:\n{made.stderr}")

    def _answers(self) -> bool:
        # A connection is accepted before it is answered.
        command = [self._programs / "pg_isready", "-q", "-h", self.directory]
        return subprocess.run(command, check=False).returncode == 0


def _programs() -> Path:
    """Return the directory of the newest PostgreSQL; Debian has them off the path."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4])
    )
    if found:
        return found[-1].parent
    elsewhere = shutil.which("postgres")
    if elsewhere is None:
        raise DidNotHappen("PostgreSQL is not installed")
    return Path(elsewhere).parent


def _unprivileged_user() -> str | None:
    """Return whom to run PostgreSQL as: it refuses to be root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"
