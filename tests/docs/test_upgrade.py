"""docs/upgrade.md, followed word for word, while clients sync."""

import threading

from tests.docs.conftest import MAIN
from tests.docs.sandbox import CHECKOUT
from tests.stack.matrix import Matrix


class Syncs:
    """A client that syncs through nginx again and again, until it is told to stop."""

    def __init__(self, machine):
        self._machine = machine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.statuses = []

    def _run(self):
        with self._machine.network():
            with Matrix(f"http://{MAIN}") as matrix:
                device = matrix.log_in("alice", device_id="while it is upgraded")
            with Matrix("http://127.0.0.1:8080") as matrix:
                while not self._stop.wait(0.02):
                    self.statuses.append(matrix.sync(device).status_code)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def make_new_version(checkout):
    """Make what the new version differs in: its number, and a line of nginx's."""
    replace(checkout / "whoami_router/__init__.py", '"0.1.0"', '"0.2.0"')
    replace(checkout / "nginx/snippets/proxy.conf", "# Needs:", "# Of the new version. Needs:")


def test_upgrade_keeps_local_changes_and_fails_no_request(marked, followed):
    machine = followed.machine
    workers = machine.path("/etc/nginx/conf.d/upstreams.conf").read_text()
    make_new_version(machine.path(CHECKOUT))
    with Syncs(machine) as syncs:
        said = machine.follow(marked.take("pip install"), network=True)
        assert "version 0.2.0" in said
        machine.follow(marked.take("restart"))
        machine.follow(marked.take("check"))
        machine.follow(marked.take("systemd/"))
        said = machine.follow(marked.take("nginx-files nginx"))
        assert "+# Of the new version. " in said
        machine.follow(marked.take("patch "))
        assert machine.path("/etc/nginx/conf.d/upstreams.conf").read_text() == workers
        new = machine.path("/etc/nginx/snippets/proxy.conf").read_text()
        assert "# Of the new version. " in new
        assert "routing_json;" in machine.path("/etc/nginx/snippets/access_log.conf").read_text()
        said = machine.follow(marked.take("mv /opt/whoami-router.before"))
        assert "version 0.1.0" in said
    assert len(syncs.statuses) > 100
    assert {*syncs.statuses} == {200}
