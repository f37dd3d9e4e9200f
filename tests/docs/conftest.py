"""The blocks that name a test, and machines on which they are run."""

import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, blocks
from tests.docs.sandbox import sandbox
from tests.stack.matrix import Matrix
from tests.stack.postgres import Postgres
from tests.stack.redis import Redis
from tests.stack.synapse import Bridge, Main, SharedConfiguration, Worker


class Marked:
    """The blocks that name one test, in their order; it has to take them all."""

    def __init__(self, file, test):
        self._left = [
            block
            for document in DOCUMENTS
            for block in blocks(document)
            if block.run_by == (file, test)
        ]
        assert self._left, f"no block says that {file}::{test} runs it"

    def take(self, containing=""):
        """Return the next one; fails if that is not the one that holds the text."""
        block = self._left.pop(0)
        assert containing in block.text, block.place
        return block

    def __iter__(self):
        while self._left:
            yield self.take()

    @property
    def left(self):
        return [block.place for block in self._left]


@pytest.fixture
def marked(request):
    file = str(Path(request.path).relative_to(ROOT))
    found = Marked(file, request.function.__name__)
    failed = request.session.testsfailed
    yield found
    if request.session.testsfailed == failed:
        assert found.left == []


@contextmanager
def made(directory):
    if os.getuid() != 0:
        pytest.skip("only root may make a machine to write to")
    with sandbox(directory) as machine:
        yield machine


@pytest.fixture
def machine(tmp_path):
    """Return a machine to write to (tests/docs/sandbox.py)."""
    with made(tmp_path) as machine:
        yield machine


# The addresses that docs/install.md names.
MAIN = "127.0.0.1:8008"
WORKERS = ("127.0.0.1:8083", "127.0.0.1:8084")


class Synapse:
    """The Synapse that docs/install.md expects, in the network of a machine; alice is there."""

    def __init__(self, stack, machine):
        # In /tmp: the path of a UNIX socket has to be short, and PostgreSQL's user to get through.
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="wr-", dir="/tmp")))
        directory.chmod(0o755)
        self._machine = machine
        postgres = stack.enter_context(Postgres(directory))
        redis = stack.enter_context(Redis(directory))
        self._shared = SharedConfiguration(directory, postgres, redis, Bridge(directory), {})
        self._main = Main(self._shared, [MAIN])
        self._workers = [
            Worker(self._shared, f"sync-{n}", address) for n, address in enumerate(WORKERS)
        ]
        for each in (self._main, *self._workers):
            stack.callback(each.stop)
        with machine.network():
            self._main.spawn()  # it makes its tables first, which takes a while

    def complete(self):
        """Return once all of it runs."""
        with self._machine.network():
            self._main.wait_ready()
            for each in self._workers:
                each.spawn()
            for each in self._workers:
                each.wait_ready()
            with Matrix(f"http://{MAIN}") as matrix:
                matrix.register("alice", secret=self._shared.registration_secret)


class Followed:
    """A machine on which docs/install.md was followed; ``output`` is what one saw."""

    def __init__(self, machine, marked):
        self.machine = machine
        self._marked = marked
        self._seen = []
        self.blocks = []

    def follow(self, containing, *, network=False):
        self._follow(self._marked.take(containing), network=network)

    def follow_the_rest(self):
        for block in self._marked:
            self._follow(block)

    def _follow(self, block, *, network=False):
        self.blocks.append(block)
        self._seen.append((block.commands, self.machine.follow(block, network=network)))

    def output(self, command):
        """Return what the only block with this command in it printed."""
        [output] = [output for commands, output in self._seen if command in commands]
        return output


@pytest.fixture(scope="package")
def followed(tmp_path_factory):
    """Return a machine on which docs/install.md was followed, word for word."""
    marked = Marked(
        "tests/docs/test_install.py", "test_newcomer_has_routed_and_watched_syncs_of_each_user"
    )
    with made(tmp_path_factory.mktemp("machine")) as machine, ExitStack() as stack:
        synapse = Synapse(stack, machine)
        followed = Followed(machine, marked)
        followed.follow("apt-get install")
        followed.follow("pip install", network=True)
        followed.follow("pip wheel", network=True)
        synapse.complete()
        followed.follow_the_rest()
        yield followed


@pytest.fixture
def installed(followed, machine):
    """Return another machine, on which the program and its units are, and nothing else."""
    copied = ["/opt/whoami-router", "/usr/local/bin/whoami-router", "/etc/systemd/system"]
    for path in copied:
        target = machine.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["cp", "-a", "--no-target-directory", followed.machine.path(path), target], check=True
        )
    return machine
