"""What must not be seen: tokens anywhere, decisions by clients unless switched on."""

import secrets
from urllib.parse import quote

import pytest

from tests.stack.matrix import INCREMENTAL_SYNCS, INITIAL_SYNCS, Device, Matrix
from tests.stack.nginx import Nginx
from tests.stack.process import wait_until


def test_files_as_shipped_tell_clients_nothing(deployment, new_user, tmp_path):
    device = new_user()
    with (
        Nginx(tmp_path, deployment.upstreams) as shipped,
        Matrix(shipped.url) as client,
    ):
        for response in (client.sync(device), client.sliding_sync(device), client.sync(None)):
            assert response.status_code in (200, 401)
            assert not {name for name in response.headers if "user-identifier" in name}
            assert "x-upstream-address" not in response.headers
            assert device.localpart not in str(response.headers)


@pytest.mark.parametrize("killed", [False, True], ids=["router up", "router killed"])
def test_no_token_is_in_a_log_or_a_response_header(deployment, router, matrix, new_user, killed):
    first = new_user()
    refreshable = matrix.log_in(first.localpart, refreshable=True)
    logged_out = matrix.log_in(first.localpart)
    matrix.log_out(logged_out)
    devices = [
        first,
        refreshable,
        matrix.refresh(refreshable),
        logged_out,
        matrix.register_guest(),
        Device("", "", "unknown-" + secrets.token_hex()),
        Device("", "", "unknown/" + secrets.token_hex() + "=+"),
    ]
    if killed:
        router.kill()
    for device in devices:
        for each in (device, device.with_token_in_query()):
            for sync in (Matrix.sync, Matrix.sliding_sync, Matrix.events, Matrix.initial_sync):
                response = sync(matrix, each)
                assert device.token not in str(response.headers)
                assert quote(device.token, safe="") not in str(response.headers)
    for sync in INITIAL_SYNCS | INCREMENTAL_SYNCS:
        (INITIAL_SYNCS | INCREMENTAL_SYNCS)[sync](matrix, first.with_token_in_query())

    # nginx writes its log after the response; on one connection in the order of the requests.
    last = f"/{secrets.token_hex()}"
    matrix.request("GET", last)
    wait_until(lambda: last in deployment.nginx.log_text(), "nginx's log is written")
    tokens = {*matrix.tokens, *(device.token for device in devices)}
    for log in (deployment.nginx.log_text(), router.log_text()):
        assert log
        for token in tokens:
            assert token not in log
            assert quote(token, safe="") not in log
