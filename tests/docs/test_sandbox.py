"""What is done on the machine of the documents' tests stays there."""

from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from tests.docs.conftest import made
from tests.stack.process import free_port, wait_until

PLACES = ("/etc", "/opt", "/var/lib", "/usr/local/bin", "/root", "/run", "/tmp", "/dev/shm")


@pytest.mark.parametrize("place", PLACES)
def test_what_is_written_is_not_on_this_machine(machine, place):
    written = f"{place}/{machine.pid}-of-the-sandbox"
    machine.run(f"touch {written}")
    assert machine.path(written).exists()
    assert not Path(written).exists()


@pytest.mark.parametrize("place", ["/tmp", "/run"])
def test_what_programs_of_this_machine_leave_is_not_seen(machine, place):
    with NamedTemporaryFile(dir=place) as left:
        machine.run(f"test ! -e {left.name}")


def test_programs_end_with_the_machine(tmp_path):
    with made(tmp_path) as machine:
        machine.run("sleep 1000 > /dev/null 2>&1 &")
        inside = f"/proc/{machine.pid}"
        assert "sleep" in machine.run("ps ax")
    wait_until(lambda: not Path(inside).exists(), "process 1 of the machine has ended")
    assert [path.name for path in (tmp_path / "files").iterdir()] == []  # nothing mounted


def test_network_is_the_machines_own(machine):
    port = free_port()
    machine.run(f"python3 -m http.server {port} > /dev/null 2>&1 &")
    url = f"http://127.0.0.1:{port}/"
    machine.run(f"curl -s --retry 20 --retry-connrefused -o /dev/null {url}")
    assert machine.run(f"curl -s {url} || echo refused", network=True) == "refused\n"
