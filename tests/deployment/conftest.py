import secrets

import pytest

from tests.stack.deployment import deployed
from tests.stack.matrix import Matrix


@pytest.fixture(scope="session")
def deployment():
    with deployed() as running:
        yield running


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
def router(deployment):
    """The router, for a test to break; afterwards it runs again and remembers nothing."""
    yield deployment.router
    deployment.router.stop()
    deployment.router.start()
