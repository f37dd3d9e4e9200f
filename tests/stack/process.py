"""One running program of the stack: started, watched until it is ready, stopped by its id."""

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self


class DidNotHappen(Exception):  # noqa: N818  (the name says what went wrong)
    """Something that was waited for did not happen before its deadline."""


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 30) -> None:
    """Return once the condition is true; raise DidNotHappen after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DidNotHappen(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port on which nobody listens at the moment."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def accepts(address: str) -> bool:
    """Return whether somebody listens at ``host:port`` or ``unix:/path``."""
    family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
    with socket.socket(family) as client:
        try:
            if family == socket.AF_UNIX:
                client.connect(address.removeprefix("unix:"))
            else:
                host, _, port = address.rpartition(":")
                client.connect((host, int(port)))
        except OSError:
            return False
    return True


class Process:
    """A program that runs until it is stopped; its output goes to a log file.

    A context manager: leaving it stops the program, also after an error. Started again after
    it has ended, it appends to the same log.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        ready: Callable[[], object],
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        inherits: Sequence[int] = (),
        seconds: float = 30,
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.log = log
        self._ready = ready
        self._environment = {**os.environ, **(environment or {})}
        self._user = user
        self._inherits = inherits
        self._seconds = seconds
        self._running: subprocess.Popen[bytes] | None = None

    def spawn(self) -> Self:
        """Start the program and return at once."""
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd="/",
                user=self._user,
                group=pwd.getpwnam(self._user).pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                # Ctrl-C is for whoever started us, who then stops the programs in their order.
                process_group=0,
                pass_fds=self._inherits,
            )
        return self

    def wait_ready(self) -> Self:
        """Return once the program is ready; if it is not, raise with the end of its log."""

        def ready() -> object:
            if not self.alive:
                raise DidNotHappen(f"{self.name} ended with status {self.returncode}")
            return self._ready()

        try:
            wait_until(ready, f"{self.name} is ready", seconds=self._seconds)
        except DidNotHappen as exc:
            exc.add_note(f"The end of {self.log}:\n{self.log_text()[-4000:]}")
            raise
        return self

    def start(self) -> Self:
        """Start the program and return once it is ready."""
        return self.spawn().wait_ready()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # Ctrl-C, too
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the program runs."""
        return self._running is not None and self._running.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._running is not None
        return self._running.pid

    @property
    def returncode(self) -> int | None:
        """The status the program ended with (negative: the signal), None while it runs."""
        return self._running.poll() if self._running else None

    def log_text(self) -> str:
        """Return everything the program has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if the program still runs."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                self._running.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 20) -> None:
        """Ask the program to end; after so many seconds, end it."""
        if self._running is None:
            return
        self.send_signal(signal.SIGCONT)  # a stopped program would not hear the other signal
        self.send_signal(number)
        try:
            self._running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the program at once, as a crash would."""
        self.send_signal(signal.SIGKILL)
        if self._running is not None:
            self._running.wait()
