"""Opaque tokens, which Synapse knows from an authentication service only."""

import secrets

import pytest

from tests.deployment.disclosure import disclosed
from tests.fake_synapse import served
from tests.stack.deployment import deployed
from tests.stack.introspection import AuthenticationService
from tests.stack.matrix import Device
from tests.stack.process import wait_until


@pytest.fixture(scope="module")
def service():
    return AuthenticationService()


@pytest.fixture(scope="module")
def deployment(service):
    """A deployment of its own, in place of the one that all other tests share."""
    with served(service) as address, deployed(settings=service.settings(address)) as running:
        yield running
        assert disclosed([running.directory]) == {}


@pytest.fixture
def log_in(service, matrix):
    """Makes a user, unless one is given, and a device; returns the device with a new token."""

    def issue(localpart=None, device_id=None, **token):
        localpart = localpart or f"alice-{secrets.token_hex(4)}"
        device_id = device_id or secrets.token_hex(5)
        user_id = matrix.provision(localpart, device_id, secret=service.secret)
        return Device(user_id, device_id, service.issue(localpart, device_id, **token))

    return issue


def test_device_whose_token_changes_stays_on_one_worker_at_one_lookup_a_token(
    deployment, routed, log_in
):
    device = log_in()
    routes = []
    before = len(deployment.lookups())
    for _ in range(10):
        routes += [routed(device) for _ in range(3)]
        device = log_in(device.localpart, device.device_id)
    assert {route.identifier for route in routes} == {device.localpart}
    assert [route.source for route in routes] == ["whoami", "cache", "cache"] * 10
    assert len({route.worker for route in routes}) == 1
    assert len(deployment.lookups()) - before == 10


def test_devices_of_a_user_reach_one_worker_whatever_their_tokens(routed, log_in):
    for _ in range(5):
        first = log_in()
        devices = [
            first,
            log_in(first.localpart).with_token_in_query(),
            log_in(first.localpart, compatible=True),
            log_in(first.localpart, compatible=True).with_token_in_query(),
        ]
        routes = [routed(device) for device in devices]
        assert {(route.identifier, route.source) for route in routes} == {
            (first.localpart, "whoami")
        }
        assert len({route.worker for route in routes}) == 1


UNAVAILABLE = {"errcode": "M_UNKNOWN", "error": "Unable to introspect the access token"}


def test_remembered_token_stays_on_the_users_worker_while_introspection_fails(
    matrix, service, routed, same_answer, log_in
):
    device = log_in()
    since = matrix.sync(device).json()["next_batch"]
    usual = routed(log_in(device.localpart), since).worker
    with service.outage():
        # The worker does not know this token: so far only one for initial syncs has seen it.
        route = routed(device, since, status=503)
        assert (route.identifier, route.source) == (device.localpart, "cache")
        assert route.worker == usual
        same_answer(lambda client: client.sync(device, since), **UNAVAILABLE)
    assert routed(device, since) == route


def test_token_that_nobody_can_introspect_is_resolved_as_soon_as_somebody_can(
    deployment, matrix, service, same_answer, log_in
):
    device, later = log_in(), log_in()
    with service.outage():
        same_answer(lambda client: client.sync(device), **UNAVAILABLE)
        route = deployment.route(matrix.sync(device))
        assert route.identifier.startswith("sha256:")
        assert route.source == "fingerprint"
    for each in (device, later):
        # The router may ask Synapse less often while that fails.
        wait_until(
            lambda each=each: deployment.route(matrix.sync(each)).identifier == each.localpart,
            "it is resolved again",
        )
        assert matrix.sync(each).status_code == 200


def test_bridged_user_is_routed_by_name_without_introspection(deployment, matrix, service, routed):
    # An application service's token is Synapse's own business, also here.
    user = matrix.register_bridged(f"bridge_{secrets.token_hex(4)}", token=deployment.bridge.token)
    with service.outage():
        route = routed(user)
    assert (route.identifier, route.source) == (user.localpart, "whoami")


INACTIVE = {"errcode": "M_UNKNOWN_TOKEN", "error": "Token is not active", "soft_logout": False}


def test_token_that_expired_before_the_router_saw_it_is_refused_by_synapse(routed, refused, log_in):
    device = log_in(seconds=0)
    refused(device, **INACTIVE)
    route = routed(device, status=401)
    assert (route.identifier, route.source) == (None, "rejected")


def test_remembered_token_that_expires_is_refused_by_synapse(routed, refused, log_in):
    device = log_in(seconds=5)
    usual = routed(device).worker
    refused(device, **INACTIVE)
    route = routed(device, status=401)
    assert (route.identifier, route.source, route.worker) == (device.localpart, "cache", usual)


def test_remembered_token_of_a_device_that_is_gone_is_refused_by_synapse(
    matrix, service, routed, refused, log_in
):
    device = log_in()
    usual = routed(device).worker
    matrix.withdraw(device, secret=service.secret)
    refused(device, **INACTIVE)
    route = routed(device, status=401)
    assert (route.identifier, route.source, route.worker) == (device.localpart, "cache", usual)
