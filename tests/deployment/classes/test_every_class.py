"""Real workers, one of each class: what nginx sends to them they serve."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from tests.endpoints.__main__ import installed
from tests.endpoints.cases import CASES
from tests.endpoints.samples import samples
from tests.stack.process import wait_until

METHODS = ("GET", "POST", "PUT", "DELETE")


@pytest.fixture(scope="module")
def through(deployment):
    with httpx.Client(base_url=deployment.nginx.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def straight(deployment):
    with httpx.Client(base_url=f"http://{deployment.main.addresses[0]}", timeout=60) as client:
        yield client


def unknown(response):
    """Return whether Synapse has nothing there, or no such endpoint, or none for this method."""
    if response.status_code == 404:
        return True
    return response.status_code == 405 and "M_UNRECOGNIZED" in response.text


def unknown_by_worker_only(through, straight, requests):
    """Send each without a token both ways; return what only Synapse's main process knows."""

    def compare(request):
        by_worker = through.request(*request)
        return unknown(by_worker) and not unknown(straight.request(*request))

    with ThreadPoolExecutor(8) as threads:
        found = threads.map(compare, requests)
        return [request for request, only in zip(requests, found, strict=True) if only]


def test_workers_know_of_every_listed_endpoint_what_the_main_process_knows(through, straight):
    requests = [(method, path) for _, path in CASES for method in METHODS]
    assert unknown_by_worker_only(through, straight, requests) == []


@pytest.fixture(scope="module")
def registered():
    return installed()


def test_nothing_that_synapse_registers_is_sent_to_a_worker_that_does_not_know_it(
    through, straight, registered
):
    requests = [
        (method, path)
        for pattern, methods in registered["homeserver"].items()
        for path in samples(pattern)
        for method in methods
    ]
    assert len(requests) > 500
    assert unknown_by_worker_only(through, straight, requests) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_matrix/client/v1/media/config"),
        ("GET", "/_matrix/client/v1/media/download/example.org/x"),
        ("GET", "/_matrix/media/v3/config"),
        ("POST", "/_matrix/media/v3/upload"),
        ("GET", "/_matrix/federation/v1/media/download/x"),
        ("POST", "/_synapse/admin/v1/purge_media_cache"),
        ("POST", "/_synapse/admin/v1/quarantine_media/x"),
        ("POST", "/_matrix/client/v3/user_directory/search"),
        ("PUT", "/_matrix/client/v3/rooms/!x/typing/@x:example.org"),
        ("PUT", "/_matrix/client/v3/sendToDevice/m.x/1"),
    ],
)
def test_classes_know_what_only_they_serve(through, method, path):
    response = through.request(method, path)
    assert (response.status_code, response.json()["errcode"]) in (
        (401, "M_MISSING_TOKEN"),
        (401, "M_UNAUTHORIZED"),  # another server, without a signature
    )


def cors(client, path):
    response = client.options(path)
    assert (response.status_code, response.content) == (204, b"")
    prefix = "access-control-"
    return {name: value for name, value in response.headers.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix/client/v3/sync",
        "/_matrix/media/v3/upload",
        "/_matrix/client/v1/media/config",
        "/_matrix/federation/v1/version",
        "/_matrix/client/unstable/org.matrix.msc4108/rendezvous",
        "/_synapse/client/pick_idp",
        "/_synapse/admin/v1/server_version",
        "/.well-known/matrix/client",
    ],
)
def test_preflight_is_answered_as_synapse_answers_it(through, straight, path):
    answered = cors(through, path)
    if "rendezvous" not in path:
        assert answered.pop("access-control-max-age") == "86400"
    assert answered == cors(straight, path)


@pytest.mark.parametrize(
    "uri",
    [
        "/_synapse/metrics",
        "/_synapse/%6Detrics",
        "/%5Fsynapse/metrics",
        "/_synapse/metrics/../../_matrix/client/versions",
        "/_synapse/metrics/%2e%2e/%2e%2e/_matrix/client/versions",
        "/_synapse/metrics/..%2f..%2f_matrix/client/versions",
        "/_matrix/../_synapse/metrics",
        "/_synapse/client/../metrics",
        "//_synapse/metrics",
    ],
)
def test_strangers_do_not_read_synapses_metrics(deployment, uri):
    def ask(address, **headers):
        with closing(http.client.HTTPConnection(address)) as client:
            client.putrequest("GET", uri)
            for name, value in headers.items():
                client.putheader(name.replace("_", "-"), value)
            client.endheaders()
            response = client.getresponse()
            return response.status, response.read()

    # Of a proxy that nginx does not know.
    status, body = ask(deployment.nginx.address, X_Forwarded_For="203.0.113.1")
    assert status in (403, 404)
    assert b"synapse_" not in body


def test_metrics_are_there_for_those_who_may_read_them(through):
    assert "synapse_http_server" in through.get("/_synapse/metrics").text


def test_single_sign_on_begins_at_its_worker(deployment, through):
    path = "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://app.example.org/"
    response = through.get(path, headers={"host": "example.org"})
    assert response.status_code == 302
    assert response.headers["location"].startswith("https://cas.example.org/")
    request_id = response.headers["x-request-id"]
    wait_until(lambda: request_id in deployment.nginx.log_text(), "the access log")
    [line] = [line for line in deployment.nginx.log_text().splitlines() if request_id in line]
    assert " pool=synapse_sso " in line
