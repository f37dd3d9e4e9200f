"""What must not be seen: tokens anywhere, decisions by clients unless switched on."""

import secrets
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import pytest
from starlette.responses import Response

from tests.deployment.disclosure import disclosed
from tests.fake_synapse import FakeSynapse, served
from tests.stack.matrix import INCREMENTAL_SYNCS, INITIAL_SYNCS, Device, Matrix
from tests.stack.nginx import ACCESS_LOG, DEBUG_HEADERS, Nginx
from tests.stack.router import Router


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


FAULTS = ["none", "router killed", "router hung", "Synapse unreachable", "Synapse answers 500"]

# What the router says with it; nothing while it does not answer.
SOURCES = {
    "none": {"whoami", "cache", "rejected", "fingerprint"},
    "Synapse unreachable": {"token", "fingerprint"},
    "Synapse answers 500": {"token", "fingerprint"},
}


@pytest.fixture
def devices(deployment, matrix, new_user):
    """A device with every kind of token there is, and with some that are none."""
    first = new_user()
    admin = new_user(admin=True)
    refreshable = matrix.log_in(first.localpart, refreshable=True)
    logged_out = matrix.log_in(first.localpart)
    matrix.log_out(logged_out)
    service = deployment.bridge.token
    bridged = matrix.register_bridged(f"bridge_{secrets.token_hex(4)}", token=service)
    return [
        first,
        admin,
        refreshable,
        matrix.refresh(refreshable),
        logged_out,
        matrix.register_guest(),
        matrix.log_in_as(first.user_id, admin=admin),
        Device("", "", service),
        bridged,
        replace(bridged, user_id=first.user_id),  # for whom the service may not act
        matrix.log_in_bridged(bridged),
        Device("", "", "unknown-" + secrets.token_hex()),
        Device("", "", "unknown/" + secrets.token_hex() + "=+"),
        Device("", "", first.token[:-1] + "!"),
        Device("", "", secrets.token_hex(2000)),
        # These no header can carry.
        Device("", "", "line\r\nbreak: " + secrets.token_hex(), token_in_query=True),
        Device("", "", "no-ASCII-\u00e9-" + secrets.token_hex(), token_in_query=True),
        Device("", "", secrets.token_hex(10_000), token_in_query=True),
    ]


def spellings(token):
    """Return the token, plain and percent-encoded in the ways that occur."""
    encoded = quote(token, safe="")
    return {token, encoded, quote(token), encoded.lower(), repr(token)[1:-1]}


def written(deployment, directory):
    """Return every file there that may be the router's or nginx's, and its content."""
    others = {
        deployment.directory / "media",
        deployment.postgres.directory,
        *(each.log for each in (deployment.postgres, deployment.main)),
        *(worker.log for worker in deployment.workers.values()),
    }
    files = {}
    for path in (*deployment.directory.rglob("*"), *directory.rglob("*")):
        # A .yaml is Synapse's configuration, and names the application service's token.
        if path.suffix != ".yaml" and not others & {path, *path.parents}:
            with suppress(FileNotFoundError):  # a temporary file of nginx's
                if path.is_file():
                    files[path] = path.read_text(errors="replace")
    return files


@contextmanager
def serving(deployment, directory, fault):
    """A router and an nginx of their own before the deployment's Synapse; the fault, if it is in
    Synapse, is in the one that the router asks.
    """
    broken = FakeSynapse(answer=Response(status_code=500))
    with served(broken) as address:
        synapse_urls = {
            "Synapse unreachable": "http://127.0.0.1:1",
            "Synapse answers 500": f"http://{address}",
        }
        url = synapse_urls.get(fault, deployment.main.addresses[1])
        with Router(directory, url, "--log-level", "debug") as router:
            upstreams = {**deployment.upstreams, "whoami_router": (router.address,)}
            with Nginx(directory, upstreams, edits=[DEBUG_HEADERS, ACCESS_LOG]) as nginx:
                yield router, nginx


def every_request(devices, *, few):
    """Return syncs of every kind with every token, in the header and in the query."""
    each = {each for device in devices for each in (device, device.with_token_in_query())}
    syncs = [Matrix.sync, Matrix.sliding_sync, Matrix.events, Matrix.initial_sync]
    requests = [(sync, device) for device in each for sync in (syncs[:1] if few else syncs)]
    for scheme in ("bearer ", "Bearer  ", ""):
        headers = {"Authorization": scheme + devices[0].token}
        requests += [(partial(Matrix.sync, headers=headers), devices[1].with_token_in_query())]
    if not few:
        every = INITIAL_SYNCS | INCREMENTAL_SYNCS
        requests += [(sync, devices[0].with_token_in_query()) for sync in every.values()]
    return requests


@pytest.mark.parametrize("fault", FAULTS)
def test_no_token_is_in_a_file_or_a_response_header(deployment, matrix, devices, tmp_path, fault):
    hung = fault == "router hung"
    with serving(deployment, tmp_path, fault) as (router, nginx), Matrix(nginx.url) as client:
        if fault == "router killed":
            router.kill()
        if hung:
            router.send_signal(signal.SIGSTOP)
        # Each takes the seconds that nginx waits for a router that hangs.
        with ThreadPoolExecutor(50 if hung else 1) as pool:
            asked = every_request(devices, few=hung)
            responses = list(pool.map(lambda request: request[0](client, request[1]), asked))
        router.send_signal(signal.SIGCONT)
        # Their last words count, too.
        router.stop()
        nginx.stop()

    statuses = {response.status_code for response in responses}
    assert {200, 401} <= statuses <= {200, 400, 401, 403, 414, 500}
    for response in responses:
        # Synapse's own words: some of these tokens are not what it expects. nginx has no JSON.
        assert response.status_code != 500 or response.json()["errcode"] == "M_UNKNOWN"
    sources = {response.headers.get("x-user-identifier-source") for response in responses}
    assert sources - {None} >= SOURCES.get(fault, set())
    files = written(deployment, tmp_path)
    for log in (router.log, nginx.log, deployment.router.log, deployment.nginx.log):
        assert files[log]
    tokens = {*matrix.tokens, *client.tokens, *(device.token for device in devices)}
    for spelling in set().union(*map(spellings, tokens)):
        for path, text in files.items():
            assert spelling not in text, path
        for response in responses:
            assert spelling not in str(response.headers.raw)


def test_search_of_all_logs_finds_what_there_is_to_find(tmp_path):
    device = Device("", "", "shown-" + secrets.token_hex())
    log = tmp_path / "front" / "router.log"
    log.parent.mkdir()
    log.write_text(f"GET /sync?access_token={device.token}&since=s1\n")
    assert disclosed([tmp_path]) == {log: {device.token}}
    log.unlink()  # or the search at the end of all tests would find it, too
