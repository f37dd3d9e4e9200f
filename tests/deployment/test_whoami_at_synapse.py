"""How the router asks a real Synapse, and what Synapse makes of it."""

import httpx
import pytest

from tests.stack.matrix import Matrix
from tests.stack.process import wait_until
from tests.stack.router import Router

CLIENT = ("127.0.0.5", "Element/1.2.3")


@pytest.fixture(params=["tcp", "unix", "worker"])
def own_router(request, deployment, tmp_path):
    """A router that remembers nothing yet, for each place where Synapse can be asked."""
    tcp, unix = deployment.main.addresses
    url = {
        "tcp": f"http://{tcp}",
        "unix": unix,
        "worker": f"http://{deployment.workers['sync-1'].address}",
    }[request.param]
    with Router(tmp_path, url) as running:
        yield running


def resolve(router, token, **headers):
    response = httpx.get(
        f"http://{router.address}/resolve",
        headers={"Authorization": f"Bearer {token}", **headers},
        trust_env=False,
    )
    assert response.status_code == 204
    return (
        response.headers.get("x-user-identifier"),
        response.headers.get("x-user-identifier-source"),
    )


def test_token_resolves_wherever_synapse_listens(own_router, matrix, new_user):
    user = new_user()
    for device in (user, matrix.log_in(user.localpart, refreshable=True)):
        assert resolve(own_router, device.token) == (user.localpart, "whoami")
        assert resolve(own_router, device.token) == (user.localpart, "cache")
    assert resolve(own_router, "unknown") == (None, "rejected")


def test_synapse_that_is_asked_is_ready(own_router):
    response = httpx.get(f"http://{own_router.address}/ready", trust_env=False)
    assert response.status_code == 204


def test_lookup_is_recorded_as_the_clients(own_router, matrix, new_user):
    admin, user = new_user("admin", admin=True), new_user()
    address, user_agent = CLIENT
    resolve(own_router, user.token, **{"X-Forwarded-For": address, "User-Agent": user_agent})
    # Synapse writes down what it has seen every few seconds.
    wait_until(
        lambda: matrix.connections(user.user_id, admin=admin), "Synapse saw the user", seconds=60
    )
    assert matrix.connections(user.user_id, admin=admin) == {CLIENT}


def test_sync_is_recorded_once_and_as_the_clients(deployment, matrix, new_user):
    admin, user = new_user("admin", admin=True), new_user()
    address, user_agent = CLIENT
    with Matrix(deployment.nginx.url, source_address=address) as client:
        response = client.sync(user, headers={"User-Agent": user_agent})
    assert deployment.route(response).source == "whoami"
    # The lookup came before the sync: once the sync is written down, so is the lookup.
    wait_until(
        lambda: CLIENT in matrix.connections(user.user_id, admin=admin),
        "Synapse saw the client",
        seconds=60,
    )
    assert matrix.connections(user.user_id, admin=admin) == {CLIENT}


@pytest.fixture
def seen(matrix, new_user):
    """Returns how a device stands in the device list of its user, and in an administrator's.

    They ask with tokens of their own: whoever reads a list is seen himself.
    """
    admin = new_user("admin", admin=True)

    def read(device, other):
        # Synapse writes down what it has seen every few seconds.
        wait_until(
            lambda: matrix.last_seen(device, asking=other), "Synapse saw the device", seconds=60
        )
        assert (
            matrix.last_seen(device, asking=other)
            == matrix.last_seen_by_admin(device, admin=admin)[0]
        )
        return matrix.last_seen_by_admin(device, admin=admin)

    return read


def test_device_list_shows_the_lookup_as_the_clients(own_router, matrix, new_user, seen):
    device = new_user()
    other = matrix.log_in(device.localpart)
    address, user_agent = CLIENT
    resolve(own_router, device.token, **{"X-Forwarded-For": address, "User-Agent": user_agent})
    assert seen(device, other) == CLIENT


def test_device_list_shows_the_sync_as_the_clients(deployment, matrix, new_user, seen):
    device = new_user()
    other = matrix.log_in(device.localpart)
    address, user_agent = CLIENT
    with Matrix(deployment.nginx.url, source_address=address) as client:
        response = client.sync(device, headers={"User-Agent": user_agent})
    assert deployment.route(response).source == "whoami"
    assert seen(device, other) == CLIENT


def test_tokens_that_synapse_stumbles_over_keep_nobody_from_being_resolved(
    deployment, matrix, new_user, tmp_path
):
    user, guest = new_user(), matrix.register_guest()
    with Router(tmp_path, deployment.main.addresses[1]) as router:
        # Synapse reads them as macaroons, and answers 500 to each.
        for token in ("{}", "&", "ZL", "MDAx") * 3:
            assert resolve(router, token)[1] == "fingerprint"
        assert resolve(router, user.token) == (user.localpart, "whoami")
        assert resolve(router, guest.token) == (guest.localpart, "whoami")


def test_headers_that_synapse_hangs_up_on_keep_nobody_from_being_resolved(
    deployment, new_user, tmp_path
):
    user, address = new_user(), deployment.main.addresses[1]
    # What nginx passes on of HTTP/2, and more than Twisted reads of a line.
    long = {"User-Agent": b"\xff" * 15_000, "X-Forwarded-For": "a" * 15_000}
    with Router(tmp_path, address) as router:
        for number in range(9):
            name = list(long)[number % 2]
            assert resolve(router, f"unknown-{number}", **{name: long[name]}) == (None, "rejected")
        assert resolve(router, user.token) == (user.localpart, "whoami")
