"""Whom nginx believes, whom it lets in, and what Synapse is told of them."""

import ssl
import subprocess
from contextlib import ExitStack

import httpx
import pytest

from tests.nginx.edge import (
    ACCESS_LOG,
    JSON_LOG,
    MEDIA,
    PRIVATE_CLIENTS,
    ROUTES,
    SERVER,
    SLIDING,
    STRANGER,
    SYNC,
    TRUSTED_PROXY,
    VERSIONS,
    asked_for,
    client_at,
    logged,
    requests_of,
    sent_raw,
)
from tests.stack.process import free_port

PRIVATE = [
    "/_synapse/admin/v1/users",
    "/_synapse/admin",
    "/_synapse/metrics",
    "/_synapse/replication/send_event/abc",
    "/_synapse/mas/sync_devices",
    "/_synapse/",
    "/_synapse/clientx",
    "/_matrixx/a",
    "/metrics",
    "/anything",
    "/health/x",
]
PUBLIC = [
    "/",
    "/health",
    "/.well-known/matrix/client",
    "/.well-known/matrix/server",
    "/.well-known/matrix/support",
    "/_synapse/client/pick_idp",
    "/_matrix/static/",
    "/_matrix/key/v2/server",
    "/_matrix/federation/v1/version",
    MEDIA,
    SLIDING,
    SYNC,
    VERSIONS,
]
ODD = [
    "/%5Fsynapse/admin",
    "/_synapse/%61dmin",
    "/%5f%73%79%6e%61%70%73%65/metrics",
    "//_synapse/admin",
    "/_synapse//admin",
    "///",
    "//_matrix/../_synapse/admin",
    "/_synapse/metrics/../../_matrix/x",
    "/_synapse/metrics/%2e%2e/%2e%2e/_matrix/x",
    "/_synapse/metrics/%2E./.%2E/_matrix/x",
    "/_synapse/metrics/..%2f..%2f_matrix/",
    "/_synapse/metrics/..%2f..%2f_matrix/x",
    "/_synapse/metrics/..//../_matrix/x",
    "/_synapse/metrics/./x",
    "/_matrix/../_synapse/admin",
    "/_matrix/%2e%2e/_synapse/admin",
    "/_matrix/.%2E/_synapse/admin",
    "/_matrix/./../_synapse/admin",
    "/_matrix/client/../../_synapse/metrics",
    "/_matrix/..",
    "/_synapse/client/../admin",
    "/_synapse/client/%2e%2e/admin",
    "/.well-known/matrix/../../_synapse/admin",
    "/health/../_synapse/admin",
    "/../_synapse/admin",
    "/./_synapse/admin",
    "/_SYNAPSE/admin",
    "/_Synapse/Metrics",
    "/_MATRIX/x",
    "/_synapse/admin?/_matrix/",
    "/_synapse/admin?x=/../../_matrix/x",
    "/_synapse/admin#/_matrix/",
    "/_synapse/admin/#?/_matrix/",
    "/_synapse/metrics;/_matrix/",
    "/_synapse\\client\\",
    "/\\_matrix/",
    "/?/_synapse/admin/../../_synapse/admin#/../../",
    "http://example.org/_synapse/admin",
    "HTTP://example.org/_synapse/admin",
    "http://example.org//_synapse/admin",
    "http://example.org/_synapse/metrics/../../_matrix/x",
    "http://example.org/_matrix/../_synapse/metrics",
    "http://example.org?/_synapse/admin",
    "http://_matrix/_synapse/admin",
    "https://example.org:8448/_synapse/admin",
    "/_synapse/admin\x80",
    "/\xff_matrix/",
    "*",
    "_synapse/admin",
    "example.org:80",
]


# Who may use what.


@pytest.fixture
def site(make_site):
    return make_site(PRIVATE_CLIENTS)


def test_private_endpoints_are_for_listed_clients(site, pools):
    with client_at(site, STRANGER) as stranger:
        for path in PRIVATE:
            response = stranger.get(path)
            assert (response.status_code, response.json()["errcode"]) == (403, "M_FORBIDDEN"), path
            assert stranger.post(path, content=b"{}").status_code == 403
            assert stranger.options(path).status_code == 403
    assert requests_of(pools) == []
    with client_at(site, "127.0.0.1") as listed:
        for path in PRIVATE:
            assert listed.get(path).status_code == 200, path


def test_everyone_uses_the_rest(site):
    with client_at(site, STRANGER) as stranger:
        for path in PUBLIC:
            assert stranger.get(path).status_code == 200, path
            assert stranger.get(path, headers={"x-forwarded-for": "a"}).status_code == 200


def test_no_spelling_leads_a_stranger_to_private_endpoints(site, pools):
    for target in ODD:
        status = asked_for(site, target)
        if [request for request in requests_of(pools) if not is_root(request)]:
            raise AssertionError(f"{target} reached Synapse")
        if not requests_of(pools):
            assert status in (400, 403), target
        for synapse in pools.values():
            synapse.requests.clear()


def is_root(request):
    """Return whether Synapse's front page is all that is asked for."""
    return request.scope["raw_path"] == b"/"


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix/client/v3/rooms/%2F%2e%2e%2F/state",
        "/_matrix/client/v3/rooms/..x/state",
        "/_matrix/client/v3/rooms/x..%2fx/state/...",
        "/_matrix//client/versions",
    ],
)
def test_public_paths_reach_synapse_as_they_are_written(site, path):
    """Which looks for nothing else below /_matrix/ then."""
    with client_at(site, STRANGER) as stranger:
        request = stranger.build_request("GET", path)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert stranger.send(request).json()["uri"] == path + "?"


def test_nginxs_own_path_would_let_everyone_in(make_site):
    target = "/_synapse/metrics/../../_matrix/x"
    assert asked_for(make_site(PRIVATE_CLIENTS), target) == 403
    wrong = (ROUTES, "map $request_uri $request_path", "map $uri $request_path")
    assert asked_for(make_site(PRIVATE_CLIENTS, wrong), target) == 200


@pytest.mark.parametrize(
    "value", ["192.0.2.1", "127.0.0.1", "127.0.0.1, 127.0.0.1", "unknown", ","]
)
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_unlisted_proxy_brings_nobody_to_private_endpoints(site, pools, header, value):
    for path in PRIVATE:
        assert asked_for(site, path, f"{header}: {value}", address="127.0.0.1") == 403
    assert requests_of(pools) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),  # the proxy's machine itself
        (["X-Forwarded-For: 192.0.2.9"], 200),
        (["X-Forwarded-For: 192.0.2.7, 192.0.2.9", "Via: 1.1 proxy"], 200),
        (["X-Forwarded-For: 192.0.2.9:4711"], 200),
        (["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 192.0.2.9, 127.0.0.1"], 200),
        (["X-Forwarded-For: 192.0.2.7"], 403),
        (["X-Forwarded-For: 192.0.2.9, 192.0.2.7"], 403),
        (["X-Forwarded-For: 192.0.2.9", "X-Forwarded-For: 192.0.2.7"], 403),
        (["X-Forwarded-For: 192.0.2.9, 192.0.2.7, 127.0.0.1"], 403),
        (["X-Forwarded-For: 127.0.0.1,192.0.2.7:4711"], 403),
        (["X-Forwarded-For: 127.0.0.1, [2001:db8::1]:4711"], 403),
        (["X-Forwarded-For: 2001:db8::"], 403),
        (["X-Forwarded-For: unknown"], 403),
        (["X-Forwarded-For: 192.0.2.9, unknown"], 403),
        (["X-Forwarded-For: unknown, 127.0.0.1"], 403),
        (["X-Forwarded-For: unknown, 127.0.0.1:4711"], 403),
        (["X-Forwarded-For: 127.0.0.1"], 403),  # who can say so directly
        (["X-Forwarded-For: ,"], 403),
        (["Forwarded: for=192.0.2.7"], 403),
        (["Forwarded: for=192.0.2.9"], 403),
        (["X-Real-IP: 192.0.2.9"], 403),
        (["Via: 1.1 proxy"], 403),
    ],
)
def test_listed_proxy_says_who_may_use_private_endpoints(make_site, headers, status):
    site = make_site(PRIVATE_CLIENTS, TRUSTED_PROXY)
    assert asked_for(site, "/_synapse/admin", *headers, address="127.0.0.1") == status
    assert asked_for(site, VERSIONS, *headers, address="127.0.0.1") == 200


# What Synapse and the router are told.


FORWARDED = {
    "x-forwarded-for": "198.51.100.1, 203.0.113.5, 127.0.0.1",
    "x-forwarded-proto": "https",
    "x-request-id": "from-the-proxy:1.2_3",
}


@pytest.mark.parametrize("path", [SYNC, SLIDING, VERSIONS, MEDIA])
def test_listed_proxy_is_believed(make_site, fake_router, path):
    site = make_site(TRUSTED_PROXY, router_address=fake_router.address)
    response = site.get(path, "a", **FORWARDED)
    headers = response.json()["headers"]
    assert headers["x-forwarded-for"] == "203.0.113.5"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-request-id"] == response.headers["x-request-id"] == "from-the-proxy:1.2_3"
    for request in fake_router.requests:
        assert request.headers["x-forwarded-for"] == "203.0.113.5"
    assert len(fake_router.requests) == ("sync" in path)


@pytest.mark.parametrize("edits", [[], [TRUSTED_PROXY]])
@pytest.mark.parametrize("path", [SYNC, VERSIONS])
def test_nobody_else_is_believed(make_site, fake_router, edits, path):
    site = make_site(*edits, router_address=fake_router.address)
    for address in (STRANGER, *([] if edits else ["127.0.0.1"])):
        with client_at(site, address) as client:
            response = client.get(path, headers=FORWARDED)
        headers = response.json()["headers"]
        assert headers["x-forwarded-for"] == address
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-request-id"] == response.headers["x-request-id"]
        assert headers["x-request-id"] != FORWARDED["x-request-id"]
        for request in fake_router.requests:
            assert request.headers["x-forwarded-for"] == address
        fake_router.requests.clear()


def test_listed_proxy_that_says_no_address_is_not_believed(make_site):
    site = make_site(TRUSTED_PROXY)
    for said in ({}, {"x-forwarded-for": "unknown"}):
        headers = site.get(VERSIONS, **{**FORWARDED, "x-forwarded-for": "", **said}).json()[
            "headers"
        ]
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-request-id"] != FORWARDED["x-request-id"]


@pytest.mark.parametrize(
    ("proto", "seen"),
    [
        ("http", "http"),
        ("https", "https"),
        ("HTTPS", "https"),
        ("ftp", "http"),
        ("https, http", "http"),
        ("", "http"),
        ("javascript:alert(1)", "http"),
    ],
)
def test_scheme_is_one_of_two(make_site, proto, seen):
    site = make_site(TRUSTED_PROXY)
    headers = site.get(VERSIONS, **{**FORWARDED, "x-forwarded-proto": proto}).json()["headers"]
    assert headers["x-forwarded-proto"] == seen


@pytest.fixture
def start_with_tls(make_site, tmp_path):
    """Return a function that starts an nginx with TLS; it returns a client that speaks it."""
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", key, "-out", certificate, "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    lines = f"""
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
"""
    with ExitStack() as stack:

        def start(*edits):
            make_site((SERVER, "    #listen [::]:8080;\n", lines), *edits)
            trusted = ssl.create_default_context(cafile=certificate)
            client = httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted)
            return stack.enter_context(client)

        yield start


def test_scheme_is_that_of_the_connection_whatever_a_client_says(start_with_tls):
    client = start_with_tls()
    for said in ({}, {"x-forwarded-proto": "http"}, FORWARDED | {"x-forwarded-proto": "http"}):
        headers = client.get(VERSIONS, headers=said).json()["headers"]
        assert headers["x-forwarded-proto"] == "https"


@pytest.mark.parametrize(
    ("proto", "seen"), [("http", "http"), ("https", "https"), ("ftp", "https"), ("", "https")]
)
def test_listed_proxy_that_speaks_tls_to_us_says_what_its_client_speaks(
    start_with_tls, proto, seen
):
    client = start_with_tls(TRUSTED_PROXY)
    said = FORWARDED | {"x-forwarded-proto": proto}
    assert client.get(VERSIONS, headers=said).json()["headers"]["x-forwarded-proto"] == seen


@pytest.mark.parametrize("given", ["a" * 128, "x", "1", "-", "a.b", "a:b", "a_b", "a-b", "A1"])
def test_request_id_of_a_listed_proxy_is_used_as_it_is(make_site, given):
    response = make_site(TRUSTED_PROXY).get(VERSIONS, **(FORWARDED | {"x-request-id": given}))
    assert response.headers["x-request-id"] == given
    assert response.json()["headers"]["x-request-id"] == given


@pytest.mark.parametrize("given", ["1 own", "x1 own", "0 1 own"])
def test_request_id_does_not_say_that_a_listed_proxy_gave_it(site, given):
    """What nginx thinks of the client stands before it in the text that is looked at."""
    with client_at(site, STRANGER) as stranger:
        response = stranger.get(VERSIONS, headers={"x-request-id": given})
    assert len(response.headers["x-request-id"]) == 32
    assert response.json()["headers"]["x-request-id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("given", ["", "a b", "a\tb", 'a"b', "é", "a;b", "a" * 129, "a,b"])
def test_request_id_that_is_none_is_not_used(make_site, given):
    site = make_site(TRUSTED_PROXY)
    response = site.client.get(
        VERSIONS, headers={**FORWARDED, "x-request-id": given.encode("latin-1")}
    )
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32
    assert response.json()["headers"]["x-request-id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("log", [ACCESS_LOG, JSON_LOG])
def test_id_that_a_listed_proxy_gave_is_logged(make_site, log):
    site = make_site(TRUSTED_PROXY, log)
    given = {"x-forwarded-for": "192.0.2.7", "x-request-id": "given-by-the-proxy"}
    assert site.get(VERSIONS, **given).headers["x-request-id"] == "given-by-the-proxy"
    assert b"given-by-the-proxy" in logged(site)[0]


@pytest.mark.parametrize("path", [SYNC, VERSIONS, MEDIA])
def test_a_request_has_one_id_everywhere(make_site, path):
    site = make_site(ACCESS_LOG)
    ids = []
    for _ in range(3):
        response = site.get(path, "a", **{"x-request-id": "own"})
        ids.append(response.headers["x-request-id"])
        assert response.headers.get_list("x-request-id") == ids[-1:]
        assert response.json()["headers"]["x-request-id"] == ids[-1]
    assert [line.decode().partition(" id=")[2] for line in logged(site, 3)] == ids
    assert len(set(ids)) == 3
    assert "own" not in ids


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ("example.org", "example.org"),
        ("example.org:8448", "example.org:8448"),
        ("EXAMPLE.org:80", "example.org:80"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:8448", "192.0.2.1:8448"),
        ("Example.org.:8448", "example.org:8448"),
        ("example.org:", "example.org"),
        ("example.org:80x", "example.org"),
        ("example.org:http", "example.org"),
        ("example.org:80:90", "example.org"),
        ("[::1]", "[::1]"),
        ("[::1]:8448", "[::1]:8448"),
    ],
)
@pytest.mark.parametrize("path", [SYNC, VERSIONS])
def test_host_keeps_its_port(site, path, host, seen):
    assert site.get(path, host=host).json()["headers"]["host"] == seen


@pytest.mark.parametrize(
    ("request_line", "host", "seen"),
    [
        (f"GET {VERSIONS} HTTP/1.0", "", None),
        (f"GET {VERSIONS} HTTP/1.0", "Host: a:1\r\n", "a:1"),
        (f"GET http://a{VERSIONS} HTTP/1.0", "", "a"),
        (f"GET http://a:1{VERSIONS} HTTP/1.1", "Host: a:1\r\n", "a:1"),
        (f"GET http://a{VERSIONS} HTTP/1.1", "Host: b:99\r\n", "a"),
        (f"GET http://a{VERSIONS} HTTP/1.1", "Host: ab:99\r\n", "a"),
        (f"GET http://ab{VERSIONS} HTTP/1.1", "Host: b:99\r\n", "ab"),
    ],
)
def test_no_host_is_invented(site, main, request_line, host, seen):
    sent_raw(site, f"{request_line}\r\n{host}Connection: close\r\n\r\n".encode())
    [request] = main.requests
    assert request.headers.get("host") == seen
