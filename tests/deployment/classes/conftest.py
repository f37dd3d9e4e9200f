import asyncio
import secrets

import nio
import pytest

from tests.deployment.classes.session import DEADLINE, Session
from tests.deployment.disclosure import disclosed
from tests.stack.deployment import deployed
from tests.stack.matrix import PASSWORD, TOKENS
from tests.stack.synapse import SERVER_NAME

LONG_POLL_MS = 5_000

# Beyond what every deployment here has: clients register by themselves or come from a single
# sign-on, and show whether they are there; and Synapse has metrics, which are not for them.
SETTINGS = {
    "public_baseurl": "http://example.org/",
    "cas_config": {"enabled": True, "server_url": "https://cas.example.org/"},
    "enable_metrics": True,
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "presence": {"enabled": True},
}


@pytest.fixture(scope="package")
def deployment(tmp_path_factory):
    """A deployment with a worker for each class, for these tests alone.

    Twenty more workers, and presence, would slow down what others measure.
    """
    with deployed(every_class=True, settings=SETTINGS) as running:
        yield running
        assert disclosed([running.directory, tmp_path_factory.getbasetemp()]) == {}


@pytest.fixture
def by(deployment):
    """Checks an answer and returns it; afterwards sees in all logs that its pool served it."""
    session = Session(deployment)
    yield session
    session.see_that_each_pool_served_its_own()
    session.see_that_all_syncs_of_a_user_had_one_worker()


@pytest.fixture
async def device(deployment):
    """Makes a client that nobody is logged in at."""
    clients = []

    def new(user=""):
        client = nio.AsyncClient(
            deployment.nginx.url,
            user,
            # (!) It would ask again and hide what nginx answered.
            config=nio.AsyncClientConfig(max_timeouts=0, max_limit_exceeded=0),
        )
        clients.append(client)
        return client

    yield new
    for client in clients:
        await client.close()


@pytest.fixture
def account(device, by):
    """Registers a user; returns their two devices, which have made their initial syncs."""

    async def register(name):
        localpart = f"{name}-{secrets.token_hex(4)}"
        phone = device(localpart)
        by("login", await phone.register(localpart, PASSWORD))
        assert phone.user_id == f"@{localpart}:{SERVER_NAME}"
        laptop = device(phone.user_id)
        by("login", await laptop.login(PASSWORD))
        assert laptop.user_id == phone.user_id
        assert laptop.device_id != phone.device_id
        for each in (phone, laptop):
            TOKENS.add(each.access_token)
            by("initial_sync", await each.sync())
        return phone, laptop

    return register


@pytest.fixture
def synced(by):
    """Syncs, as clients do, until there is in an answer what is looked for; returns that."""

    async def until(device, find):
        async with asyncio.timeout(DEADLINE):
            while not (found := find(by("sync", await device.sync(timeout=LONG_POLL_MS)))):
                pass
        return found

    return until


@pytest.fixture
def room(by, synced):
    """Makes a room that these devices' users are in, and that all the devices have heard of."""

    async def make(owner, *others, **options):
        made = by("client_reader", await owner[0].room_create(**options))
        for other in others:
            invited = await owner[0].room_invite(made.room_id, other[0].user_id)
            by("event_creator", invited)
            for device in other:
                await synced(device, lambda sync: made.room_id in sync.rooms.invite)
            by("event_creator", await other[0].join(made.room_id))
        for device in [device for devices in (owner, *others) for device in devices]:
            await synced(device, lambda sync: made.room_id in sync.rooms.join)
        return made.room_id

    return make


@pytest.fixture
def send(by):
    """Sends a message to a room; returns the ID of the event."""

    async def send(device, room_id, body):
        content = {"msgtype": "m.text", "body": body}
        sent = await device.room_send(room_id, "m.room.message", content)
        return by("event_creator", sent).event_id

    return send
