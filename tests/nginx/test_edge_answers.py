"""What nginx answers itself, and that it leaves the answers of Synapse alone."""

import json
import re

import pytest
from starlette.responses import Response

from tests.nginx.edge import CORS, MEDIA, SLIDING, SYNC, TRUSTED_PROXY, VERSIONS, requests_of
from tests.nginx.raw_upstream import streamed
from tests.stack.nginx import SHIPPED

RENDEZVOUS = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
SHORT_READ = ("conf.d/synapse.conf", "proxy_read_timeout 600s;", "proxy_read_timeout 1s;")


def cors_of(response):
    """Return the CORS headers; each must be there once."""
    found = [(name, value) for name, value in response.headers.multi_items() if "access-c" in name]
    assert len(dict(found)) == len(found)
    return dict(found)


def assert_matrix_error(response, status, errcode):
    """Check that a client in a browser understands the answer."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body["errcode"], bool(body["error"])) == (errcode, True)
    assert cors_of(response) == CORS
    assert response.headers["x-request-id"]


def all_to(pools, address):
    """Return the edits that set an address for all workers."""
    return [
        ("conf.d/upstreams.conf", pools[name].address, address)
        for name in ("main", "sync-1", "sync-2", "initial-1", "initial-2")
    ]


# A browser's preflights.


@pytest.mark.parametrize(
    "path",
    [
        SYNC,
        SLIDING,
        MEDIA,
        VERSIONS,
        "/_matrix/client/v1/media/download/example.org/abc",
        "/_matrix/client/v3/profile/rendezvous",
        "/_matrix/static/_synapse/client/rendezvous",
        RENDEZVOUS.replace(".", "x"),
        "/_synapse//client/rendezvous",
        "/_matrix/federation/v1/version",
        "/_matrix/key/v2/server",
        "/_synapse/client/pick_idp",
        "/.well-known/matrix/client",
        "/.well-known/matrix/server",
        "/health",
        "/",
        "/_matrix/client/v3/rooms/%2F%2e%2e/state?a=%00",
        "/_synapse/admin/v1/users",
    ],
)
def test_preflight_goes_no_further(make_site, fake_router, pools, path):
    site = make_site(router_address=fake_router.address)
    response = site.client.options(path)
    assert (response.status_code, response.content) == (204, b"")
    max_age = cors_of(response).pop("access-control-max-age")
    assert int(max_age) >= 7200  # as long as Chromium believes it
    assert cors_of(response) == {**CORS, "access-control-max-age": max_age}
    assert requests_of(pools) == []
    assert fake_router.requests == []


@pytest.mark.parametrize("path", [RENDEZVOUS, "/_synapse/client/rendezvous/abc"])
def test_preflight_of_a_rendezvous_is_synapses_own(site, main, path):
    main.answer = Response(status_code=204, headers={"access-control-allow-headers": "If-Match"})
    response = site.client.options(path)
    assert response.status_code == 204
    assert cors_of(response) == {"access-control-allow-headers": "If-Match"}
    assert [request.method for request in main.requests] == ["OPTIONS"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_reach_synapse(site, main, method):
    assert site.client.request(method, VERSIONS).status_code == 200
    assert [request.method for request in main.requests] == [method]


# Errors of nginx.


@pytest.mark.parametrize("path", [SYNC, SYNC.partition("?")[0], MEDIA, VERSIONS])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_worker_is_said_so_that_clients_understand(make_site, pools, dead_address, path, method):
    site = make_site(*all_to(pools, dead_address))
    response = site.client.request(method, path, content=b"{}" if method == "POST" else None)
    assert_matrix_error(response, 503, "M_UNKNOWN")
    assert int(response.headers["retry-after"]) > 0


def test_no_worker_and_no_router_are_no_more_than_that(make_site, pools, dead_address):
    site = make_site(*all_to(pools, dead_address), router_address=dead_address)
    assert_matrix_error(site.get(SYNC, "a"), 503, "M_UNKNOWN")


@pytest.mark.parametrize("path", [SYNC, MEDIA, VERSIONS])
def test_hung_worker_is_said_so_that_clients_understand(make_site, pools, hung_address, path):
    site = make_site(SHORT_READ, *all_to(pools, hung_address))
    assert_matrix_error(site.get(path), 504, "M_UNKNOWN")


def test_failure_of_nginx_is_said_so_that_clients_understand(make_site):
    """Here it cannot write a body to its temporary directory."""
    site = make_site()
    directory = site.nginx.files.parent / "temp_client_body"
    directory.rmdir()
    directory.write_text("in the way")
    response = site.client.post(SLIDING, content=b"x" * 1_000_000)
    assert_matrix_error(response, 503, "M_UNKNOWN")


@pytest.mark.parametrize(
    ("path", "file", "limit"),
    [
        (SLIDING, "client_max_body_size 13m;", "client_max_body_size 2k;"),
        (MEDIA, "client_max_body_size 50m;", "client_max_body_size 2k;"),
    ],
)
@pytest.mark.parametrize("size", [2049, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_is_said_so_that_clients_understand(make_site, path, file, limit, size, chunked):
    site = make_site(("conf.d/synapse.conf", file, limit))
    content = iter([b"x" * size]) if chunked else b"x" * size
    assert_matrix_error(site.client.post(path, content=content), 413, "M_TOO_LARGE")


def once_a_minute(status):
    """Return the edits that let a client send one request a minute."""
    zone = "limit_req_zone $remote_addr zone=clients:1m rate=1r/m;"
    include = "    include conf.d/*.conf;"
    return (
        ("nginx.conf", include, f"    {zone}\n{include}"),
        (
            "conf.d/synapse.conf",
            "    listen ",
            f"    limit_req zone=clients; {status}\n    listen ",
        ),
    )


def test_limit_of_requests_is_said_so_that_clients_wait(make_site):
    site = make_site(*once_a_minute("limit_req_status 429;"))
    assert site.get(VERSIONS).status_code == 200
    for path in (VERSIONS, SYNC):
        response = site.get(path)
        assert_matrix_error(response, 429, "M_LIMIT_EXCEEDED")
        assert response.json()["retry_after_ms"] == 1000 * int(response.headers["retry-after"])


def test_limit_with_nginxs_own_status_is_said_so_that_clients_understand(make_site):
    site = make_site(*once_a_minute(""))
    assert site.get(VERSIONS).status_code == 200
    for path in (VERSIONS, SYNC):
        assert_matrix_error(site.get(path), 503, "M_UNKNOWN")


def test_not_from_here_is_said_so_that_clients_understand(site):
    response = site.get("/_synapse/admin/v1/users", **{"x-forwarded-for": "192.0.2.1"})
    assert_matrix_error(response, 403, "M_FORBIDDEN")


def test_failure_has_the_id_that_a_listed_proxy_gave(make_site, pools, dead_address):
    site = make_site(TRUSTED_PROXY, *all_to(pools, dead_address))
    given = {"x-forwarded-for": "192.0.2.7", "x-request-id": "given-by-the-proxy"}
    for path in (SYNC, VERSIONS):
        response = site.get(path, **given)
        assert_matrix_error(response, 503, "M_UNKNOWN")
        assert response.headers["x-request-id"] == "given-by-the-proxy"


# Answers of Synapse.


@pytest.mark.parametrize("path", [SYNC, MEDIA, VERSIONS, "/.well-known/matrix/client"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 418, 419, 429, 500, 502, 503, 504])
def test_synapses_own_error_passes_unchanged(site, pools, path, status):
    body = b'{"errcode":"M_OWN", "retry_after_ms": 17}'
    own = {**CORS, "content-type": "application/json; x=1", "retry-after": "17"}
    for synapse in pools.values():
        synapse.answer = Response(body, status, headers=own)
    response = site.client.post(path, content=b"{}")
    assert (response.status_code, response.content) == (status, body)
    assert {name: response.headers[name] for name in own} == own
    assert cors_of(response) == CORS


@pytest.mark.parametrize("path", [SLIDING, VERSIONS, "/.well-known/matrix/client"])
def test_bodies_survive(site, path):
    body = json.dumps({"a": "x" * 200_000})
    assert site.client.post(path, content=body).json()["body"] == body


# .well-known/matrix


WELL_KNOWN = {
    "client": {"m.homeserver": {"base_url": "https://matrix.example.org"}},
    "server": {"m.server": "matrix.example.org:443"},
}


@pytest.fixture
def well_known_site(make_site):
    return make_site(("conf.d/well_known.conf", "    #example.org", "    example.org"))


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_synapse_is_asked_who_it_is(site, name):
    response = site.get(f"/.well-known/matrix/{name}", host="example.org")
    assert response.json()["server"] == "main"
    assert cors_of(response) == {}  # the stand-in's own


@pytest.mark.parametrize("name", WELL_KNOWN)
@pytest.mark.parametrize("host", ["example.org", "EXAMPLE.org:8448"])
def test_one_line_has_nginx_say_it_for_a_host(well_known_site, pools, name, host):
    path = f"/.well-known/matrix/{name}"
    response = well_known_site.get(path, host=host)
    assert (response.status_code, response.json()) == (200, WELL_KNOWN[name])
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert cors_of(response) == CORS
    assert requests_of(pools) == []


@pytest.mark.parametrize("host", ["example.com", "a.example.org", "127.0.0.1"])
def test_other_hosts_are_still_synapses(well_known_site, host):
    for name in WELL_KNOWN:
        response = well_known_site.get(f"/.well-known/matrix/{name}", host=host)
        assert response.json()["server"] == "main"


@pytest.mark.parametrize(
    "path", ["support", "client/", "client/x", "clients", "", "/client", "%63lient"]
)
def test_other_files_are_still_synapses(well_known_site, path):
    response = well_known_site.get(f"/.well-known/matrix/{path}", host="example.org")
    assert response.json()["server"] == "main"


# Media, and how much else.


ALL_MEDIA = [MEDIA, "/_matrix/client/v1/media/x", "/_matrix/federation/v1/media/x"]
TWENTY = 20 * 2**20
MEBIBYTE = 2**20


def temporary_files(site):
    return [path for path in site.nginx.files.parent.glob("temp_*/**/*") if path.is_file()]


@pytest.mark.parametrize("length", [{"content-length": str(TWENTY)}, {}])
def test_upload_has_a_length_as_synapse_wants_it(site, main, length):
    main.answer = Sink()
    body = (b"x" * MEBIBYTE for _ in range(20))  # which httpx sends in chunks if it has no length
    assert site.client.post(MEDIA, content=body, headers=length).status_code == 200
    [request] = main.requests
    assert request.headers["content-length"] == str(TWENTY)
    assert "transfer-encoding" not in request.headers


def test_long_header_of_synapse_reaches_the_client(site, main):
    main.answer = Response(headers={"set-cookie": "x" * 12_000})
    response = site.get("/_matrix/client/v3/login/sso/redirect")
    assert (response.status_code, len(response.headers["set-cookie"])) == (200, 12_000)


def test_long_uri_reaches_synapse(site):
    assert site.get(f"{SYNC}&filter={'x' * 12_000}").status_code == 200


def test_download_is_passed_on_as_the_client_takes_it(make_site, pools):
    with streamed() as upstream:
        site = make_site(("conf.d/upstreams.conf", pools["main"].address, upstream.address))
        with site.client.stream("GET", f"{MEDIA}?size={TWENTY}") as response:
            length, chunks = 0, response.iter_raw()
            while length < MEBIBYTE:
                length += len(next(chunks))
            # As much as fits in buffers, and no file takes the rest.
            upstream.wait_until_it_pauses()
            assert upstream.sent < TWENTY
            assert temporary_files(site) == []
            length += sum(map(len, chunks))
    assert length == TWENTY


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        (SLIDING, 12, 200),
        (SLIDING, 14, 413),
        (VERSIONS, 12, 200),
        (VERSIONS, 14, 413),
        ("/_matrix/federation/v1/send/1", 12, 200),
        ("/_matrix/federation/v1/send/1", 14, 413),
        *((path, size, status) for path in ALL_MEDIA for size, status in ((49, 200), (51, 413))),
        ("/_matrix/media/v3/upload/example.org/abc", 49, 200),
        ("/_matrix/media/r0/upload", 49, 200),
    ],
)
def test_how_much_may_be_sent(site, pools, path, size, status):
    for synapse in pools.values():
        synapse.answer = Sink()
    response = site.client.post(path, content=b"x" * size * MEBIBYTE)
    assert response.status_code == status


class Sink:
    """Takes a body and says nothing of it."""

    async def __call__(self, scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await Response()(scope, receive, send)


def test_shipped_limit_for_events_has_room_for_what_synapse_takes():
    text = (SHIPPED / "conf.d/synapse.conf").read_text()
    assert "client_max_body_size 13m;" in text
    assert 13 * MEBIBYTE > 200 * 65536


def test_nginx_waits_longer_than_an_initial_sync_takes_and_not_long_for_a_connection():
    text = (SHIPPED / "conf.d/synapse.conf").read_text()
    seconds = {
        name: int(value)
        for name, value in re.findall(r"^    proxy_(\w+)_timeout (\d+)s;", text, re.MULTILINE)
    }
    assert seconds["read"] >= 600
    assert seconds["connect"] <= 5 <= seconds["next_upstream"] < seconds["read"]
