"""One token for many users: an application service says with each request for whom it acts."""

import secrets
from dataclasses import replace
from urllib.parse import quote, urlencode

import pytest

from tests.deployment.test_whoami_at_synapse import resolve
from tests.stack.matrix import Device
from tests.stack.process import wait_until
from tests.stack.router import Router
from tests.stack.synapse import SERVER_NAME, Bridge


@pytest.fixture
def bridge(deployment, router):
    """The bridge as itself, of whose token the router remembers nothing."""
    router.stop()
    router.start()
    return Device(f"@{Bridge.LOCALPART}:{SERVER_NAME}", "", deployment.bridge.token)


@pytest.fixture
def new_bridged_user(bridge, matrix):
    """Makes a user whom no other test knows; returns the bridge as that user."""

    def register(name=""):
        localpart = f"bridge_{name}{secrets.token_hex(4)}"
        return matrix.register_bridged(localpart, token=bridge.token)

    return register


@pytest.fixture
def lookups(deployment):
    """Returns how many lookups there were since the last time that it was called."""
    seen = len(deployment.lookups())

    def count():
        nonlocal seen
        before, seen = seen, len(deployment.lookups())
        return seen - before

    return count


def test_users_of_one_token_are_each_routed_to_their_own_worker(routed, new_bridged_user):
    users = [new_bridged_user() for _ in range(12)]
    workers = {}
    for _ in range(3):
        for user in users:
            for each in (user, user.with_token_in_query()):
                route = routed(each)
                assert route.identifier == user.localpart
                assert workers.setdefault(user.user_id, route.worker) == route.worker
    # By chance alone, all on one worker: once in 2**11 runs.
    assert set(workers.values()) == {"initial-1", "initial-2"}


def test_bridged_user_reaches_the_worker_of_their_own_devices(matrix, routed, new_bridged_user):
    for _ in range(5):
        bridged = new_bridged_user()
        routes = [routed(device) for device in (bridged, matrix.log_in_bridged(bridged))]
        assert {route.identifier for route in routes} == {bridged.localpart}
        assert len({route.worker for route in routes}) == 1


def test_bridged_user_id_with_every_allowed_punctuation_is_routed(routed, new_bridged_user):
    user = new_bridged_user("a.b_c=d/e+f-")
    route = routed(user)
    assert (route.identifier, route.source) == (quote(user.localpart, safe=""), "whoami")


def test_each_bridged_user_costs_one_lookup(routed, new_bridged_user, lookups):
    users = [new_bridged_user() for _ in range(5)]
    for _ in range(3):
        for user in users:
            routed(user)
    # And one for the token itself.
    assert lookups() == len(users) + 1


def test_bridge_that_names_nobody_or_itself_is_routed_as_itself(routed, same_answer, bridge):
    # Synapse has no syncs for a bridge itself, and says so in this way.
    devices = [bridge, replace(bridge, names_user=True)]
    routes = [routed(device, status=500) for device in devices * 3]
    assert {route.identifier for route in routes} == {bridge.localpart}
    assert len({route.worker for route in routes}) == 1
    for device in devices:
        same_answer(
            lambda client, device=device: client.sync(device), error="Internal server error"
        )


NOT_REGISTERED = "Application service has not registered this user ({})"
NOT_ITS_OWN = "Application service cannot masquerade as this user ({})."
REFUSED = {
    f"@bridge_nobody:{SERVER_NAME}": NOT_REGISTERED,
    f"@alice:{SERVER_NAME}": NOT_ITS_OWN,
    "@bridge_alice:example.com": NOT_ITS_OWN,
    "nonsense": NOT_ITS_OWN,
    "": NOT_ITS_OWN,
}


@pytest.mark.parametrize("user_id", REFUSED)
def test_user_whom_the_bridge_may_not_be_is_routed_as_the_bridge(
    routed, same_answer, bridge, lookups, user_id
):
    usual = routed(bridge, status=500).worker
    device = replace(bridge, user_id=user_id, names_user=True)
    for _ in range(5):
        route = routed(device, status=403)
        assert (route.identifier, route.worker) == (bridge.localpart, usual)
    # One for the token, and at most one for the user: that Synapse refuses is remembered, too.
    assert lookups() <= 2
    same_answer(
        lambda client: client.sync(device),
        errcode="M_FORBIDDEN",
        error=REFUSED[user_id].format(user_id),
    )


def test_user_id_beside_an_ordinary_token_changes_nothing(
    routed, new_user, new_bridged_user, lookups
):
    user = new_user()
    usual = routed(user).worker
    assert lookups() == 1
    for user_id in (user.user_id, new_user().user_id, new_bridged_user().user_id, "x", ""):
        route = routed(replace(user, user_id=user_id, names_user=True))
        assert (route.identifier, route.worker) == (user.localpart, usual)
    assert lookups() == 0


def test_user_id_beside_an_administrators_token_for_a_user_costs_at_most_one_lookup(
    matrix, routed, new_user, new_bridged_user, lookups
):
    admin, user = new_user("admin", admin=True), new_user()
    device = matrix.log_in_as(user.user_id, admin=admin)
    usual = routed(device).worker
    assert lookups() == 1
    for user_id in [new_user().user_id, new_bridged_user().user_id, admin.user_id, "x", ""] * 2:
        route = routed(replace(device, user_id=user_id, names_user=True))
        assert (route.identifier, route.worker) == (user.localpart, usual)
    assert lookups() <= 1


def test_user_who_is_registered_after_a_refusal_is_routed_by_name_once_it_is_forgotten(
    deployment, matrix, tmp_path
):
    token, localpart = deployment.bridge.token, f"bridge_{secrets.token_hex(4)}"
    query = urlencode({"user_id": f"@{localpart}:{SERVER_NAME}"})
    uri = {"X-Original-URI": f"/_matrix/client/v3/sync?{query}"}
    with Router(tmp_path, deployment.main.addresses[1], "--rejected-ttl", "1") as router:
        assert resolve(router, token, **uri)[0] == Bridge.LOCALPART
        matrix.register_bridged(localpart, token=token)
        wait_until(lambda: resolve(router, token, **uri)[0] == localpart, "it is forgotten")
