import signal
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from secrets import token_hex

import httpx
import pytest

from tests.deployment.figures import Figures
from tests.deployment.load import Load
from tests.stack.matrix import Device, Matrix
from tests.stack.nginx import DEBUG_HEADERS, Nginx
from tests.stack.process import wait_until
from tests.stack.relay import Relay
from tests.stack.router import Router
from tests.stack.synapse import SERVER_NAME

# Requests a second that known users make: two cores are busy with it, but not saturated.
RATE = 120


@dataclass(frozen=True, slots=True)
class Front:
    """A router between a relay and an nginx of its own, before the Synapse of all tests."""

    relay: Relay
    router: Router
    nginx: Nginx
    since: str

    def load(self, devices: Iterable[Device], *, rate: float = RATE) -> Load:
        """Return a load of syncs with these devices, each in turn."""
        return Load(self.nginx.url, devices, since=self.since, rate=rate)

    def learn(self, devices: Iterable[Device]) -> None:
        """Sync with each device until the router knows them all, and Synapse does, too."""
        wait_until(lambda: self._sources(devices) == {"cache"}, "every device is known")

    def _sources(self, devices: Iterable[Device]) -> set[str | None]:
        with self.load(devices) as load:
            wait_until(lambda: not load.running, "every device has synced")
        return load.results.sources


@pytest.fixture(scope="session")
def figures():
    """What was measured; written to a file after the last test."""
    measured = Figures()
    yield measured
    measured.write()


@pytest.fixture
def front(deployment, new_user):
    """Starts a router with these options and what belongs to it; a keyword ``router`` makes it
    in another way, from the directory, the relay's URL and the options.

    Whatever is done to the router, nothing in it may raise: its log says so.
    """
    routers = []
    with ExitStack() as stack:

        def start(*options, router=None, relay=None, edits=()):
            # Not pytest's directory: nginx's workers run as another user and have to get to the
            # router's socket.
            directory = deployment.directory / token_hex(4)
            directory.mkdir(mode=0o755)
            relay = stack.enter_context(relay or Relay(deployment.main.addresses[1]))
            make = router or (
                lambda directory, url, *options: Router(
                    directory, url, *options, listen=f"unix:{directory}/router.sock"
                )
            )
            running = stack.enter_context(make(directory, relay.url, *options))
            routers.append(running)
            upstreams = {**deployment.upstreams, "whoami_router": (running.address,)}
            nginx = Nginx(directory, upstreams, edits=[DEBUG_HEADERS, *edits])
            stack.enter_context(nginx)
            with Matrix(nginx.url) as client:
                since = client.sync(new_user()).json()["next_batch"]
            return Front(relay, running, nginx, since)

        yield start
    for each in routers:
        assert "Traceback" not in each.log_text()
        assert "please report" not in each.log_text()


@pytest.fixture
def new_devices(deployment):
    """Makes devices that nobody has seen yet, many at once: straight in Synapse's database.

    One in five has its token in the query. The tokens are of no form that Synapse knows.
    """

    def make(count, *, users):
        prefix = token_hex(4)
        devices = [
            Device(
                f"@{prefix}-{number % users}:{SERVER_NAME}",
                f"DEVICE{number}",
                f"opaque_{token_hex(16)}",
                token_in_query=number % 5 == 0,
            )
            for number in range(count)
        ]
        # Synapse counts ids upwards from the largest one: these are out of its way.
        first = -int(token_hex(4), 16) * 1_000_000
        _copy(
            deployment,
            {
                "users (name, creation_ts)": {(device.user_id, 0) for device in devices},
                "devices (user_id, device_id)": [
                    (device.user_id, device.device_id) for device in devices
                ],
                "access_tokens (id, user_id, device_id, token)": [
                    (first + number, device.user_id, device.device_id, device.token)
                    for number, device in enumerate(devices)
                ],
            },
        )
        return devices

    return make


def _copy(deployment, tables):
    deployment.postgres.run(
        "".join(
            f"COPY {table} FROM stdin;\n"
            + "".join("\t".join(map(str, row)) + "\n" for row in rows)
            + "\\.\n"
            for table, rows in tables.items()
        )
    )


@pytest.fixture
def known(new_devices):
    """Two devices of each of a dozen users."""
    return new_devices(24, users=12)


@pytest.fixture
def main(deployment):
    """Synapse's main process, for a test to break; afterwards it answers again."""
    yield deployment.main
    deployment.main.send_signal(signal.SIGCONT)
    if not deployment.main.alive:
        deployment.main.start()
    wait_until(lambda: _answers(deployment.main.addresses[0]), "Synapse's main process answers")


def _answers(address):
    try:
        return httpx.get(f"http://{address}/_matrix/client/versions", trust_env=False).is_success
    except httpx.HTTPError:
        return False
