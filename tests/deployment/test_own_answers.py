"""Synapse authenticates: what it answers to a bad token reaches the client unchanged."""

import time

import pytest

from tests.stack.matrix import Device
from tests.stack.process import wait_until

# Everything about a response but what differs from one response to the next.
HEADERS = ("content-type", "content-length", "www-authenticate", "cache-control")


def assert_same_answer(ask, matrix, direct, **expected):
    """Both clients get this answer, byte for byte the same."""
    through, straight = ask(matrix), ask(direct)
    assert {key: straight.json().get(key) for key in expected} == expected
    assert through.status_code == straight.status_code
    assert through.content == straight.content
    for name in HEADERS:
        assert through.headers.get(name) == straight.headers.get(name), name


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
def test_unknown_token(matrix, direct, token, in_query, kind):
    device = Device("@alice:example.org", "", token, token_in_query=in_query)
    assert_same_answer(
        lambda client: getattr(client, kind)(device),
        matrix,
        direct,
        errcode="M_UNKNOWN_TOKEN",
        soft_logout=False,
    )


def test_missing_token(matrix, direct):
    assert_same_answer(lambda client: client.sync(None), matrix, direct, errcode="M_MISSING_TOKEN")


def test_token_in_header_and_query(matrix, direct, new_user):
    device = new_user()
    authorization = {"Authorization": f"Bearer {device.token}"}
    assert_same_answer(
        lambda client: client.sync(device.with_token_in_query(), headers=authorization),
        matrix,
        direct,
        errcode="M_MISSING_TOKEN",
    )


def test_expired_token_is_a_soft_logout(matrix, direct, new_user):
    admin, user = new_user("admin", admin=True), new_user()
    expired = matrix.log_in_as(
        user.user_id, admin=admin, valid_until_ms=int(time.time() * 1000) - 1000
    )
    assert_same_answer(
        lambda client: client.sync(expired),
        matrix,
        direct,
        errcode="M_UNKNOWN_TOKEN",
        soft_logout=True,
    )


def test_logged_out_token_that_the_router_remembers(deployment, matrix, direct, new_user):
    device = new_user()
    assert matrix.sync(device).status_code == 200
    matrix.log_out(device)
    # Synapse's main process tells its workers, each in its own time.
    for client in (matrix, direct):
        wait_until(lambda client=client: client.sync(device).status_code == 401, "it is known")
    assert deployment.route(matrix.sync(device)).source == "cache"
    assert_same_answer(
        lambda client: client.sync(device),
        matrix,
        direct,
        errcode="M_UNKNOWN_TOKEN",
        soft_logout=False,
    )


def test_guest_who_may_not(matrix, direct):
    guest = matrix.register_guest()
    assert_same_answer(
        lambda client: client.initial_sync(guest),
        matrix,
        direct,
        errcode="M_GUEST_ACCESS_FORBIDDEN",
    )
