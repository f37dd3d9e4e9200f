"""Users whom an administrator has restricted: the router goes by what Synapse says of them."""

import pytest

from tests.deployment.test_whoami_at_synapse import resolve
from tests.stack.matrix import Matrix
from tests.stack.process import wait_until
from tests.stack.router import Router

# What Synapse answers to each, to whoami as to a sync.
REFUSED = {
    Matrix.deactivate: {"errcode": "M_UNKNOWN_TOKEN", "soft_logout": False},
    Matrix.lock: {"errcode": "M_USER_LOCKED", "soft_logout": True},
}
# Their syncs are as ever.
ALLOWED = [Matrix.suspend, Matrix.shadow_ban]


@pytest.fixture
def restrict(matrix, new_user):
    """Restricts a user in one of these ways."""
    admin = new_user("admin", admin=True)
    return lambda restriction, device: restriction(matrix, device.user_id, admin=admin)


@pytest.fixture
def seen(new_user):
    """A user's first device."""
    return new_user()


@pytest.fixture
def unseen(matrix, seen):
    """The same user's other device, of which the router knows nothing yet."""
    return matrix.log_in(seen.localpart)


def name(restriction):
    return restriction.__name__


@pytest.mark.parametrize("restriction", REFUSED, ids=name)
def test_remembered_token_of_a_refused_user_stays_on_the_users_worker(
    restrict, routed, refused, seen, restriction
):
    usual = routed(seen).worker
    restrict(restriction, seen)
    refused(seen, **REFUSED[restriction])
    for _ in range(5):
        route = routed(seen, status=401)
        assert (route.identifier, route.source, route.worker) == (seen.localpart, "cache", usual)


@pytest.mark.parametrize("restriction", REFUSED, ids=name)
def test_unknown_token_of_a_refused_user_is_rejected_and_has_one_worker(
    restrict, routed, refused, unseen, restriction
):
    restrict(restriction, unseen)
    refused(unseen, **REFUSED[restriction])
    routes = [routed(unseen, status=401) for _ in range(10)]
    assert {(route.identifier, route.source) for route in routes} == {(None, "rejected")}
    assert len({route.worker for route in routes}) == 1


@pytest.mark.parametrize("restriction", ALLOWED, ids=name)
def test_user_who_may_sync_stays_on_one_worker(matrix, restrict, routed, seen, restriction):
    usual = routed(seen).worker
    unseen = [matrix.log_in(seen.localpart) for _ in range(5)]
    restrict(restriction, seen)
    later = [matrix.log_in(seen.localpart) for _ in range(5)]
    for device in (seen, *unseen, *later):
        route = routed(device)
        assert route.source == ("cache" if device is seen else "whoami")
        assert (route.identifier, route.worker) == (seen.localpart, usual)


def test_user_who_is_unlocked_is_routed_by_name_once_the_refusal_is_forgotten(
    deployment, matrix, new_user, seen, tmp_path
):
    admin = new_user("admin", admin=True)
    matrix.lock(seen.user_id, admin=admin)
    with Router(tmp_path, deployment.main.addresses[1], "--rejected-ttl", "1") as router:
        assert resolve(router, seen.token) == (None, "rejected")
        matrix.lock(seen.user_id, admin=admin, locked=False)
        wait_until(lambda: resolve(router, seen.token)[0] == seen.localpart, "it is forgotten")
