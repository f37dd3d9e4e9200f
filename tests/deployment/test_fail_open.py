"""Whatever becomes of the router, a sync succeeds and is routed by its token."""

import signal
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest


@pytest.fixture
def devices(matrix, new_user):
    """Devices of one user, the second with its token in the query."""
    first = new_user()
    query = matrix.log_in(first.localpart).with_token_in_query()
    return [first, query, matrix.log_in(first.localpart, refreshable=True)]


class _Error(BaseHTTPRequestHandler):
    # (!) A connection that is kept would outlive the server: nginx would go on asking it.
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.server.answers += 1
        self.send_error(500)

    def log_message(self, *_):
        pass  # it would name the client's address, which a UNIX socket does not have


@contextmanager
def broken_router(path):
    """A router on this UNIX socket with nothing but errors for an answer."""
    with socketserver.ThreadingUnixStreamServer(path, _Error) as server:
        Path(path).chmod(0o666)  # nginx's workers may run as another user
        server.answers = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
            assert server.answers > 0
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(params=["killed", "hung", "answering 500"])
def broken(request, router):
    if request.param == "killed":
        router.kill()
        yield
    elif request.param == "hung":
        router.send_signal(signal.SIGSTOP)
        yield
    else:
        router.stop()
        with broken_router(router.address.removeprefix("unix:")):
            yield


# Few requests: while the router hangs, each of them takes what nginx allows it.


@pytest.mark.usefixtures("broken")
def test_sync_succeeds(deployment, matrix, devices):
    for device in devices[:2]:
        response = matrix.sync(device)
        assert response.status_code == 200
        route = deployment.route(response)
        assert (route.identifier, route.source) == (None, None)


@pytest.mark.usefixtures("broken")
def test_sliding_sync_succeeds(matrix, devices):
    response = matrix.sliding_sync(devices[0])
    assert response.status_code == 200
    assert matrix.sliding_sync(devices[0], response.json()["pos"]).status_code == 200


@pytest.mark.usefixtures("broken")
def test_refusal_is_still_synapses_own(matrix):
    response = matrix.sync(None)
    assert response.status_code == 401
    assert response.json()["errcode"] == "M_MISSING_TOKEN"


def test_token_keeps_its_worker_wherever_it_stands(deployment, router, matrix, devices):
    router.kill()
    for device in devices:
        either = [device, device.with_token_in_query()]
        workers = {deployment.route(matrix.sync(each)).worker for each in either * 5}
        assert len(workers) == 1


def test_router_that_comes_back_resolves_again(deployment, router, matrix, devices):
    before = {deployment.route(matrix.sync(device)).worker for device in devices}
    router.kill()
    assert [matrix.sync(device).status_code for device in devices] == [200] * 3
    router.start()
    after = [deployment.route(matrix.sync(device)) for device in devices * 2]
    assert [route.source for route in after] == ["whoami"] * 3 + ["cache"] * 3
    assert {route.worker for route in after} == before


def test_router_that_is_stopped_leaves_no_request_unanswered(router, matrix, devices):
    failed = []

    def sync():
        while router.alive:
            failed.extend(d for d in devices if matrix.sync(d).status_code != 200)

    thread = threading.Thread(target=sync)
    thread.start()
    router.stop()
    thread.join()
    assert router.returncode == 0
    assert failed == []
