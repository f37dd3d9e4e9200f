"""Synapse authenticates: what it answers to a bad token reaches the client unchanged."""

import pytest

from tests.stack.deployment import Route
from tests.stack.matrix import Device


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("syt_YWxpY2U_GPIkutRJaRjxLXIaUWCA_1kAwkU", id="native"),
        pytest.param("mct_abcdef_123456", id="delegated"),
        pytest.param("%20%00%ff", id="nonsense"),
    ],
)
@pytest.mark.parametrize("in_query", [False, True], ids=["header", "query"])
@pytest.mark.parametrize("kind", ["sync", "sliding_sync"])
def test_unknown_token(same_answer, token, in_query, kind):
    device = Device("@alice:example.org", "", token, token_in_query=in_query)
    same_answer(
        lambda client: getattr(client, kind)(device),
        errcode="M_UNKNOWN_TOKEN",
        soft_logout=False,
    )


# (!) For the router these are failures of Synapse: it must not remember them into other tests.
@pytest.mark.usefixtures("router")
def test_token_that_synapse_stumbles_over(same_answer):
    for token in ("{}", "&", "ZL", "AgQ"):
        device = Device("", "", token)
        same_answer(lambda client, device=device: client.sync(device), errcode="M_UNKNOWN")


def test_missing_token(same_answer):
    same_answer(lambda client: client.sync(None), errcode="M_MISSING_TOKEN")


def test_token_in_header_and_query(same_answer, new_user):
    device = new_user()
    authorization = {"Authorization": f"Bearer {device.token}"}
    same_answer(
        lambda client: client.sync(device.with_token_in_query(), headers=authorization),
        errcode="M_MISSING_TOKEN",
    )


def test_expired_token_is_a_soft_logout(matrix, same_answer, new_user):
    admin, user = new_user("admin", admin=True), new_user()
    expired = matrix.log_in_as(user.user_id, admin=admin, seconds=-1)
    same_answer(
        lambda client: client.sync(expired),
        errcode="M_UNKNOWN_TOKEN",
        soft_logout=True,
    )


def test_logged_out_token_that_the_router_remembers(deployment, matrix, refused, new_user):
    device = new_user()
    assert matrix.sync(device).status_code == 200
    matrix.log_out(device)
    refused(device, errcode="M_UNKNOWN_TOKEN", soft_logout=False)
    assert deployment.route(matrix.sync(device)).source == "cache"


def test_expired_token_that_the_router_remembers(matrix, routed, refused, new_user):
    admin, user = new_user("admin", admin=True), new_user()
    device = matrix.log_in_as(user.user_id, admin=admin, seconds=5)
    usual = routed(device).worker
    refused(device, errcode="M_UNKNOWN_TOKEN", soft_logout=True)
    assert routed(device, status=401) == Route(
        user.localpart, "cache", usual, "synapse_initial_sync"
    )


def test_guest_who_may_not(matrix, same_answer):
    guest = matrix.register_guest()
    same_answer(
        lambda client: client.initial_sync(guest),
        errcode="M_GUEST_ACCESS_FORBIDDEN",
    )
