"""A machine to write to: this one, of which nothing that is done in it stays.

Everything that it writes goes to memory (an overlay over the root file system), it has a network of
its own, with nothing in it but loopback, and processes of its own, which end with it. Only root may
make it.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tests.docs import systemd
from tests.docs.blocks import ROOT, Block, not_seen
from tests.stack.process import DidNotHappen, wait_until

CHECKOUT = Path("/root/whoami-router")
"""Where the sandbox has a copy of this checkout, in which the commands are run."""

_CLONE_NEWNET = 0x40000000

_MAKE = """
set -e
mkdir "$1"
mount -t tmpfs -o mode=0755 whoami-router-docs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount --rbind /dev dev
mount -t tmpfs shm dev/shm
mount -t proc proc proc
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mkdir -p stand-in/bin run/lock
cp "$2" stand-in/systemd.py
for name in systemctl journalctl apt-get; do
    as="exec /usr/bin/python3 /stand-in/systemd.py $name"
    printf '#!/bin/sh\\n%s "$@"\\n' "$as" > stand-in/bin/$name
    chmod 755 stand-in/bin/$name
done
ip link set lo up
exec chroot . /usr/bin/python3 /stand-in/systemd.py init
"""


class Sandbox:
    """The machine, while it runs."""

    def __init__(self, init: subprocess.Popen[str], outside: TextIO) -> None:
        self._outside = outside
        # What was started is unshare; its child is process 1 in there.
        children = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        [self.pid] = map(int, children)
        self.root = Path(f"/proc/{self.pid}/root")

    def path(self, path: str | Path) -> Path:
        """Return where a file of the sandbox is found from outside."""
        return self.root / str(path).lstrip("/")

    def run(self, commands: str, *, network: bool = False) -> str:
        """Run the commands in a shell, as root, and return what is seen; fails if they do.

        The first that fails ends them. With ``network`` they have this machine's.
        """
        finished = self._run(commands, network=network)
        assert finished.returncode == 0, f"{commands}\n{finished.stdout[-4000:]}"
        return finished.stdout

    def follow(self, block: Block, *, network: bool = False, **variables: str) -> str:
        """Run a block as it stands in the document; fails unless one sees what it says.

        ``variables`` are those of the shell.
        """
        given = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())

        def tried() -> tuple[int, str, list[str]]:
            finished = self._run(given + block.commands, network=network)
            return finished.returncode, finished.stdout, not_seen(block.seen, finished.stdout)

        def seen() -> bool:
            nonlocal last
            last = tried()
            return last[0] == 0 and not last[2]

        last = tried()
        if block.repeated and (last[0] != 0 or last[2]):
            with suppress(DidNotHappen):
                wait_until(seen, block.place, seconds=60)
        status, said, missing = last
        assert status == 0 and not missing, (  # noqa: PT018  (both are told)
            f"{block.place}: status {status}, not seen: {missing}, but:\n{said[-4000:]}"
        )
        return said

    def _run(self, commands: str, *, network: bool) -> subprocess.CompletedProcess[str]:
        inside = f"/proc/{self.pid}/ns/net"
        outside = f"/proc/{os.getpid()}/fd/{self._outside.fileno()}"
        return subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--mount", "--pid"),
                f"--net={outside if network else inside}",
                *("--root", f"--wd={self.path(CHECKOUT)}", "bash", "-e", "-o", "pipefail"),
            ],
            input=commands,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={
                **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                "PATH": f"/stand-in/bin:/usr/local/bin:{os.defpath}:/usr/sbin:/sbin",
                "HOME": "/root",
                "LC_ALL": "C.UTF-8",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
            },
        )

    @contextmanager
    def network(self) -> Iterator[None]:
        """Have this thread, and what it starts, be in the sandbox's network meanwhile."""
        with Path(f"/proc/{self.pid}/ns/net").open() as inside:
            _enter(inside.fileno())
            try:
                yield
            finally:
                _enter(self._outside.fileno())


# How this machine's pip finds packages.
_PASSED_ON = [name for name in os.environ if name.startswith("PIP_") or name.endswith("_proxy")]


def _enter(network: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def sandbox(directory: Path) -> Iterator[Sandbox]:
    """Make the machine, and yield it; afterwards nothing of it is left."""
    log = directory / "machine.log"
    with (
        Path("/proc/thread-self/ns/net").open() as outside,
        log.open("w") as errors,
        subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", _MAKE, "sh", directory / "files", systemd.__file__),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as init,
    ):
        try:
            assert init.stdout.readline() == "ready\n", log.read_text()
            machine = Sandbox(init, outside)
            _copy_checkout(machine.path(CHECKOUT))
            yield machine
            assert init.poll() is None, log.read_text()
        finally:
            init.stdin.close()
            init.kill()


def _copy_checkout(target: Path) -> None:
    """Copy what would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
