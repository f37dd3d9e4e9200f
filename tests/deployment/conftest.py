import secrets

import pytest

from tests.deployment.disclosure import disclosed
from tests.stack.deployment import deployed
from tests.stack.matrix import Matrix
from tests.stack.process import wait_until

# Everything about a response but what differs from one response to the next.
HEADERS = ("content-type", "content-length", "www-authenticate", "cache-control")


@pytest.fixture(scope="session")
def deployment(tmp_path_factory):
    """The deployment; in the end none of the tokens of all tests may stand in a log."""
    with deployed() as running:
        yield running
        assert disclosed([running.directory, tmp_path_factory.getbasetemp()]) == {}


@pytest.fixture
def matrix(deployment):
    """A client of nginx, as every Matrix client is."""
    with Matrix(deployment.nginx.url) as client:
        yield client


@pytest.fixture
def direct(deployment):
    """A client of a Synapse worker, with neither nginx nor the router in between."""
    with Matrix(f"http://{deployment.workers['sync-1'].address}") as client:
        yield client


@pytest.fixture
def new_user(deployment, matrix):
    """Makes a user whom no other test knows; returns their first device."""

    def register(name="alice", *, admin=False):
        localpart = f"{name}-{secrets.token_hex(4)}"
        return matrix.register(localpart, secret=deployment.registration_secret, admin=admin)

    return register


@pytest.fixture
def routed(deployment, matrix):
    """Returns which way a device's sync went that Synapse must have answered with this status."""

    def sync(device, since=None, *, status=200):
        response = matrix.sync(device, since)
        assert response.status_code == status, response.text
        return deployment.route(response)

    return sync


@pytest.fixture
def same_answer(matrix, direct):
    """Sees that a client of nginx gets the answer that Synapse gives itself, byte for byte."""

    def compare(ask, **expected):
        through, straight = ask(matrix), ask(direct)
        assert {key: straight.json().get(key) for key in expected} == expected
        assert through.status_code == straight.status_code
        assert through.content == straight.content
        for name in HEADERS:
            assert through.headers.get(name) == straight.headers.get(name), name

    return compare


@pytest.fixture
def refused(matrix, direct, same_answer):
    """Waits until a device is refused, and sees that its client hears it from Synapse."""

    def wait(device, **expected):
        # Synapse's main process tells its workers, each in its own time.
        for client in (matrix, direct):
            wait_until(lambda client=client: client.sync(device).status_code == 401, "it is known")
        same_answer(lambda client: client.sync(device), **expected)

    return wait


@pytest.fixture
def router(deployment):
    """The router, for a test to break; afterwards it runs again and remembers nothing."""
    yield deployment.router
    deployment.router.stop()
    deployment.router.start()
