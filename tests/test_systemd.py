"""The units: that systemd takes them, how closed they are, and what their sockets are for.

systemd's own part, to hold the sockets and to pass them on, is played by its own
systemd-socket-activate, and by a launcher where the process is replaced.
"""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.fake_synapse import FakeSynapse, served
from tests.soak import times
from tests.stack.nginx import SHIPPED
from tests.stack.process import Process, free_port, wait_until
from whoami_router.serve import uvicorn_config
from whoami_router.settings import Settings

UNITS = Path(__file__).parents[1] / "deploy/systemd"
PROGRAM = "/opt/whoami-router/bin/whoami-router"
DROP_IN = "unix-socket-only.conf"
OWNERS = {f"token-{number}": f"@user{number}:example.org" for number in range(100)}
QUESTION = b"GET /resolve HTTP/1.1\r\nHost: router\r\nAuthorization: Bearer token-7\r\n\r\n"

# As systemd does it: the sockets are descriptors 3, 4 and so on of the process itself.
LAUNCHER = """
import fcntl, os, sys
count = int(sys.argv[1])
sockets, command = sys.argv[2:][:count], sys.argv[2:][count:]
copies = [fcntl.fcntl(int(each), fcntl.F_DUPFD_CLOEXEC, 100) for each in sockets]
for each in sockets:
    os.close(int(each))
for number, copy in enumerate(copies, start=3):
    os.dup2(copy, number)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(command[0], command)
"""


def unit(name):
    """Return what a unit says: {section: {option: [values]}}."""
    sections = {}
    for line in (UNITS / name).read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(found[1], {})
        elif line and not line.startswith("#"):
            option, _, value = line.partition("=")
            section.setdefault(option, []).append(value)
    return sections


def service_command():
    """Return the service's command, with this Python's whoami-router in it."""
    [command] = unit("whoami-router@.service")["Service"]["ExecStart"]
    program, *options = shlex.split(command)
    assert program == PROGRAM
    return [sys.executable, "-m", "whoami_router", *options]


def systemd_analyze(*arguments):
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "warning"},
    )


@pytest.fixture
def installed(tmp_path):
    """Return a function that installs the units, and a drop-in if it is named."""

    def install(drop_in=None):
        directory = tmp_path / "system"
        directory.mkdir()
        for file in UNITS.glob("whoami-router@.*"):
            text = file.read_text().replace(PROGRAM, shutil.which("true"))
            # By the name of an instance: systemd-analyze takes the place of %i for the letter i.
            (directory / file.name.replace("@", "@1")).write_text(text)
        if drop_in is not None:
            place = directory / "whoami-router@.service.d"
            place.mkdir()
            shutil.copy(UNITS / drop_in, place)
        return directory

    return install


@pytest.mark.parametrize("drop_in", [None, DROP_IN])
@pytest.mark.parametrize("name", ["whoami-router@1.socket", "whoami-router@1.service"])
def test_systemd_takes_the_units(installed, name, drop_in):
    checked = systemd_analyze("--recursive-errors=yes", "verify", installed(drop_in) / name)
    assert (checked.returncode, checked.stderr) == (0, "")


# What systemd counts as open, and stays so: Synapse is asked at this machine's TCP ports or at a
# UNIX socket; /proc/stat is read; ProtectClock admits to reading the clock; and a root of its own
# would need all of Python in it.
OPEN = {
    "RestrictAddressFamilies=~AF_UNIX",
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    "PrivateNetwork=",
    "IPAddressDeny=",
    "ProcSubset=",
    "DeviceAllow=",
    "RootDirectory=/RootImage=",
}
CLOSED_BY_DROP_IN = {
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    "PrivateNetwork=",
    "IPAddressDeny=",
}


@pytest.mark.parametrize(
    ("drop_in", "left_open", "exposure"),
    [(None, OPEN, 1.5), (DROP_IN, OPEN - CLOSED_BY_DROP_IN, 0.5)],
)
def test_systemd_finds_nothing_open_that_could_be_closed(installed, drop_in, left_open, exposure):
    service = installed(drop_in) / "whoami-router@1.service"
    options = ["--no-pager", "--offline=true", f"--threshold={exposure * 10:.0f}"]
    rated = systemd_analyze("security", "--json=short", *options, service)
    rows = json.loads(rated.stdout)
    assert {row["name"] for row in rows if not row["set"]} <= left_open
    assert rated.returncode == 0, rated.stdout


def test_drop_in_takes_the_network_away():
    service = unit(DROP_IN)["Service"]
    assert service["PrivateNetwork"] == ["yes"]
    # An empty value takes back what the service says; without it these would be added to that.
    assert service["RestrictAddressFamilies"] == ["", "AF_UNIX"]
    assert service["IPAddressAllow"] == [""]
    assert unit("whoami-router@.service")["Service"]["IPAddressDeny"] == ["any"]


def test_service_reaches_nobody_but_this_machine():
    service = unit("whoami-router@.service")["Service"]
    assert (service["IPAddressDeny"], service["IPAddressAllow"]) == (["any"], ["localhost"])


def test_metrics_of_the_process_are_not_hidden_from_it():
    """They need /proc/stat; nothing in its place would be missed by systemd-analyze alone."""
    assert "ProcSubset" not in unit("whoami-router@.service")["Service"]


def test_forbidden_call_fails_and_does_not_end_the_process():
    service = unit("whoami-router@.service")["Service"]
    assert service["SystemCallErrorNumber"] == ["EPERM"]


def test_service_ends_with_its_sockets_and_both_are_there_after_boot():
    service, sockets = unit("whoami-router@.service"), unit("whoami-router@.socket")
    assert service["Unit"]["Requires"] == ["whoami-router@%i.socket"]
    assert service["Install"]["WantedBy"] == ["multi-user.target"]
    assert sockets["Install"]["WantedBy"] == ["sockets.target"]
    assert sockets["Install"]["Also"] == ["whoami-router@%i.service"]


def test_options_are_where_debian_has_them_if_there_are_any():
    service = unit("whoami-router@.service")["Service"]
    assert service["EnvironmentFile"] == ["-/etc/default/whoami-router"]


def test_all_that_nginx_may_open_has_a_descriptor_and_a_place_in_the_queue():
    main = (SHIPPED / "nginx.conf").read_text()
    connections = int(re.search(r"worker_connections (\d+);", main)[1])
    [descriptors] = unit("whoami-router@.service")["Service"]["LimitNOFILE"]
    [backlog] = unit("whoami-router@.socket")["Socket"]["Backlog"]
    assert int(descriptors) >= 8 * connections  # from each of eight workers
    # The same as the service's own, or who comes while it is away has less room.
    assert int(backlog) == uvicorn_config(FakeSynapse()).backlog


def test_only_the_group_of_nginx_gets_to_the_socket():
    sockets = unit("whoami-router@.socket")["Socket"]
    access = {name: sockets[f"Socket{name}"] for name in ("User", "Group", "Mode")}
    assert access == {"User": ["root"], "Group": ["www-data"], "Mode": ["0660"]}


def test_administrators_are_on_loopback_and_only_there():
    nginx, admin = unit("whoami-router@.socket")["Socket"]["ListenStream"]
    assert nginx == "/run/whoami-router-%i/sock"
    assert admin == "127.0.0.1:901%i"


def test_what_is_asked_at_the_end_has_time_to_be_answered():
    [seconds] = unit("whoami-router@.service")["Service"]["TimeoutStopSec"]
    assert float(seconds) > 3 * Settings().whoami_timeout + 2


def test_however_often_it_ends_it_is_started_again():
    service = unit("whoami-router@.service")
    assert service["Service"]["Restart"] == ["always"]
    assert float(service["Service"]["RestartSec"][0]) >= 1  # or a mistake keeps a processor busy
    assert service["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert unit("whoami-router@.socket")["Socket"]["TriggerLimitIntervalSec"] == ["0"]


@pytest.fixture
def synapse():
    """Return a stand-in for Synapse with an ``address``."""
    fake = FakeSynapse(owners=OWNERS)
    with served(fake) as fake.address:
        yield fake
        fake.held = False


class ByPath(http.client.HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path):
        super().__init__("router", timeout=30)
        self._path = str(path)

    def connect(self):
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def user(connection, token):
    """Return the identifier that the router answers with, and nothing but 204."""
    connection.request("GET", "/resolve", headers={"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    assert response.read() == b""
    assert response.status == 204
    return response.headers["x-user-identifier"]


def test_systemd_hands_over_the_sockets_in_the_order_that_the_service_expects(synapse, tmp_path):
    socket_path, admin = tmp_path / "sock", f"127.0.0.1:{free_port()}"
    places = {"/run/whoami-router-%i/sock": str(socket_path), "127.0.0.1:901%i": admin}
    listen = [places[each] for each in unit("whoami-router@.socket")["Socket"]["ListenStream"]]
    environment = {"WHOAMI_ROUTER_SYNAPSE_URL": f"http://{synapse.address}"}
    # It leaves its own environment behind, as systemd does.
    passed_on = [f"--setenv={name}={value}" for name, value in environment.items()]
    with Process(
        "whoami-router",
        [
            *("systemd-socket-activate", *passed_on),
            *(f"--listen={each}" for each in listen),
            *service_command(),
        ],
        tmp_path / "log",
        ready=socket_path.exists,
    ):
        asks = ByPath(socket_path)
        assert user(asks, "token-1") == "user1"
        asks.request("GET", "/metrics")
        assert asks.getresponse().status == 404
        asks.close()
        with httpx.Client(base_url=f"http://{admin}") as client:
            assert client.get("/health").status_code == 204
            assert "whoami_router_resolves_total" in client.get("/metrics").text
            assert client.get("/resolve").status_code == 404


class Activated(Process):
    """The service, at two sockets that stay when it goes."""

    def __init__(self, directory, synapse_address, sockets):
        self.path = sockets[0].getsockname()
        self._identity = os.fstat(sockets[0].fileno()).st_ino
        super().__init__(
            "whoami-router",
            [
                *(sys.executable, "-c", LAUNCHER, str(len(sockets))),
                *(str(each.fileno()) for each in sockets),
                *service_command(),
            ],
            directory / "log",
            ready=self.answers,
            environment={"WHOAMI_ROUTER_SYNAPSE_URL": f"http://{synapse_address}"},
            inherits=[each.fileno() for each in sockets],
        )

    def answers(self):
        """Return whether it is there, rather than only its sockets."""
        connection = ByPath(self.path)
        connection.timeout = 0.5
        try:
            return user(connection, "token-0") == "user0"
        except TimeoutError:
            return False
        finally:
            connection.close()

    def listens(self):
        """Return whether it has nginx's socket open."""
        found = set()
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(descriptor.stat().st_ino)
        return self._identity in found


@pytest.fixture
def activated(synapse, tmp_path):
    with socket.socket(socket.AF_UNIX) as asks, socket.create_server(("127.0.0.1", 0)) as admin:
        asks.bind(str(tmp_path / "sock"))
        asks.listen(4096)
        with Activated(tmp_path, synapse.address, [asks, admin]) as service:
            yield service


class Asker(threading.Thread):
    """Asks again and again, as nginx does, until it is told to stop.

    With ``keep`` over a connection that it keeps as long as the service does. When that was
    closed in the moment of asking it asks once more over a new one, and nobody else does: a new
    connection that gives no answer is a failure.
    """

    def __init__(self, path, first, *, keep):
        super().__init__()
        self.answered = 0
        self.failed = []
        self.stopping = False
        self._path = path
        self._number = first
        self._keep = keep

    def run(self):
        """Ask."""
        connection = None
        while not self.stopping:
            self._number = (self._number + 1) % len(OWNERS)
            connection = self._ask(connection)
        if connection is not None:
            connection.close()

    def _ask(self, kept):
        """Return the connection if it may be used again."""
        if kept is not None:
            with suppress(ConnectionError):
                return self._answered(kept)
            kept.close()
        connection = ByPath(self._path)
        try:
            return self._answered(connection)
        except (OSError, http.client.HTTPException, AssertionError) as exc:
            self.failed.append(repr(exc))
            connection.close()
            return None

    def _answered(self, connection):
        assert user(connection, f"token-{self._number}") == f"user{self._number}"
        self.answered += 1
        if self._keep and connection.sock is not None:
            return connection
        connection.close()
        return None


@contextmanager
def asked(service, askers):
    """Ask the service meanwhile; afterwards nobody was refused, and nobody left without answer."""
    threads = [Asker(service.path, number * 10, keep=number % 2 == 0) for number in range(askers)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.stopping = True
        for thread in threads:
            thread.join()
    assert [failure for thread in threads for failure in thread.failed] == []


def test_process_that_is_replaced_under_load_refuses_nobody_and_fails_no_request(activated):
    with asked(activated, askers=8) as askers:

        def all_are_answered():
            before = [asker.answered for asker in askers]
            wait_until(
                lambda: all(
                    asker.answered > number + 5 or asker.failed
                    for asker, number in zip(askers, before, strict=True)
                ),
                "everyone is answered",
            )

        for _ in range(times(8)):
            all_are_answered()
            activated.stop()
            assert activated.returncode == 0
            activated.start()
        all_are_answered()


def test_question_on_its_way_when_the_process_ends_is_answered(activated):
    """The connection is the old process's by then, and no other would answer."""
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(activated.path)
        assert activated.answers()  # connections are accepted in turn: so was the one before
        assert activated.listens()
        activated.send_signal(signal.SIGTERM)
        wait_until(lambda: not activated.listens(), "it accepts no more")
        waiting.settimeout(10)
        waiting.sendall(QUESTION)
        answer = waiting.recv(4096).decode().lower()
        assert answer.startswith("http/1.1 204 ")
        assert "x-user-identifier: user7\r\n" in answer
        assert "connection: close\r\n" in answer
        wait_until(lambda: not activated.alive, "it ends")
        assert activated.returncode == 0


def test_connection_that_asks_nothing_does_not_hold_up_the_end(activated):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(activated.path)
        assert activated.answers()
        activated.send_signal(signal.SIGTERM)
        wait_until(lambda: not activated.alive, "it ends", seconds=4)
        assert activated.returncode == 0


def test_question_on_its_way_is_answered_though_synapse_is_slow(activated, synapse):
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(activated.path)
        assert activated.answers()
        activated.send_signal(signal.SIGTERM)
        wait_until(lambda: not activated.listens(), "it accepts no more")
        synapse.held = True
        waiting.settimeout(10)
        waiting.sendall(QUESTION)
        threading.Timer(1.5, setattr, (synapse, "held", False)).start()
        assert b"x-user-identifier: user7\r\n" in waiting.recv(4096).lower()
