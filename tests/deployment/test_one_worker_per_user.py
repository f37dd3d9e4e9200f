"""The promise itself: whatever device, token and sync, a user's requests reach one worker."""

from collections import defaultdict

import pytest

from tests.stack.matrix import INCREMENTAL_SYNCS, INITIAL_SYNCS

POOLS = {
    **dict.fromkeys(INITIAL_SYNCS, "synapse_initial_sync"),
    **dict.fromkeys(INCREMENTAL_SYNCS, "synapse_sync"),
}
SYNCS = INITIAL_SYNCS | INCREMENTAL_SYNCS

# Synapse refuses them to guests, or wants a guest to be in a room first.
NOT_FOR_GUESTS = {"initialSync", "rooms initialSync", "events", "events from"}


@pytest.fixture
def devices_of(matrix):
    """Returns devices of a user that cover every kind of token, in the header and the query."""

    def log_in(first):
        native = matrix.log_in(first.localpart)
        refreshable = matrix.log_in(first.localpart, refreshable=True)
        refreshed = matrix.refresh(matrix.log_in(first.localpart, refreshable=True))
        return [
            first,
            native.with_token_in_query(),
            refreshable,
            matrix.log_in(first.localpart, refreshable=True).with_token_in_query(),
            refreshed,
            refreshed.with_token_in_query(),
        ]

    return log_in


@pytest.fixture
def route_of(deployment):
    """Returns which way a sync went that must have succeeded for a known user."""

    def route(response, device):
        assert response.status_code == 200, response.text
        taken = deployment.route(response)
        assert taken.identifier == device.localpart
        assert taken.source in ("cache", "whoami")
        return taken

    return route


@pytest.mark.parametrize("sync", SYNCS)
def test_every_device_and_token_of_a_user_reaches_one_worker(
    matrix, new_user, devices_of, route_of, sync
):
    routes = {route_of(SYNCS[sync](matrix, device), device) for device in devices_of(new_user())}
    assert len({route.worker for route in routes}) == 1
    assert {route.pool for route in routes} == {POOLS[sync]}


def test_every_kind_of_sync_of_a_user_reaches_one_worker_of_its_pool(
    matrix, new_user, devices_of, route_of
):
    workers = defaultdict(set)
    for device in devices_of(new_user()):
        for sync in SYNCS.values():
            route = route_of(sync(matrix, device), device)
            workers[route.pool].add(route.worker)
    assert {pool: len(used) for pool, used in workers.items()} == {
        "synapse_sync": 1,
        "synapse_initial_sync": 1,
    }


@pytest.mark.parametrize("sync", [sync for sync in SYNCS if sync not in NOT_FOR_GUESTS])
def test_guest_reaches_one_worker(matrix, route_of, sync):
    guest = matrix.register_guest()
    routes = [
        route_of(SYNCS[sync](matrix, device), device)
        for device in (guest, guest.with_token_in_query(), guest)
    ]
    assert len({route.worker for route in routes}) == 1
    assert {route.pool for route in routes} == {POOLS[sync]}


def test_two_hundred_devices_of_forty_users_reach_one_worker_per_user_and_pool(
    matrix, new_user, route_of
):
    workers = defaultdict(set)
    for _ in range(40):
        first = new_user()
        refreshable = matrix.log_in(first.localpart, refreshable=True)
        devices = [
            first,
            matrix.log_in(first.localpart).with_token_in_query(),
            refreshable,
            matrix.refresh(matrix.log_in(first.localpart, refreshable=True)),
            matrix.log_in(first.localpart),
        ]
        for device in devices:
            initial = matrix.sync(device)
            since = initial.json()["next_batch"]
            for response in (initial, matrix.sync(device, since)):
                route = route_of(response, device)
                workers[first.user_id, route.pool].add(route.worker)
    assert len(workers) == 40 * 2
    assert all(len(used) == 1 for used in workers.values())
    # By chance alone, all on one worker of a pool: once in 2**39 runs.
    assert set.union(*workers.values()) == {"sync-1", "sync-2", "initial-1", "initial-2"}


def test_refreshed_token_stays_on_the_worker(matrix, new_user, route_of):
    device = matrix.log_in(new_user().localpart, refreshable=True)
    workers = set()
    for _ in range(8):
        workers.add(route_of(matrix.sync(device), device).worker)
        device = matrix.refresh(device)
    assert len(workers) == 1


def test_user_who_logs_out_and_in_again_stays_on_the_worker(matrix, new_user, route_of):
    device = new_user()
    workers = set()
    for _ in range(8):
        workers.add(route_of(matrix.sync(device), device).worker)
        matrix.log_out(device)
        device = matrix.log_in(device.localpart)
    assert len(workers) == 1


def test_user_id_with_every_allowed_punctuation_is_routed(deployment, matrix, new_user):
    first = new_user("a.b_c=d/e+f")
    routes = [
        deployment.route(matrix.sync(device))
        for device in (first, *(matrix.log_in(first.localpart) for _ in range(5)))
    ]
    encoded = first.localpart.replace("=", "%3D").replace("/", "%2F").replace("+", "%2B")
    assert {route.identifier for route in routes} == {encoded}
    assert len({route.worker for route in routes}) == 1


def test_client_cannot_choose_its_worker(deployment, matrix, new_user):
    device = new_user()
    usual = deployment.route(matrix.sync(device)).worker
    for number in range(20):
        headers = {"X-User-Identifier": f"mallory{number}", "X-User-Identifier-Source": "cache"}
        route = deployment.route(matrix.sync(device, headers=headers))
        assert (route.identifier, route.worker) == (device.localpart, usual)


def test_client_without_a_token_cannot_choose_its_worker(deployment, matrix):
    routes = [
        deployment.route(matrix.sync(None, headers={"X-User-Identifier": "mallory"}))
        for _ in range(20)
    ]
    assert {(route.identifier, route.source) for route in routes} == {(None, "none")}
    assert {route.worker for route in routes} == {"initial-1", "initial-2"}


def test_post_and_get_alternate_on_one_connection(matrix, new_user, route_of):
    device = new_user()
    since = matrix.sync(device).json()["next_batch"]
    pos = matrix.sliding_sync(device).json()["pos"]
    routes = set()
    for _ in range(50):
        posted = matrix.sliding_sync(device, pos)
        routes.add(route_of(posted, device))
        pos = posted.json()["pos"]
        routes.add(route_of(matrix.sync(device, since), device))
    assert len(routes) == 1
