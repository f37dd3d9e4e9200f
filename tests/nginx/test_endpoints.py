"""Every endpoint that Synapse's workers serve arrives at its pool, and nothing else does."""

import http.client
import re
from contextlib import closing

import pytest

from tests.endpoints.cases import CASES, ENDPOINTS, METHODS, expected_pool
from tests.nginx.conftest import arrives_at


@pytest.fixture(scope="module")
def client(start):
    return start()


@pytest.mark.parametrize(("pattern", "path"), CASES, ids=[path for _, path in CASES])
def test_path_arrives_at_its_pool_by_every_method(client, pattern, path):
    for method in METHODS:
        assert arrives_at(client, path, method) == expected_pool(pattern, path, method), method


def spoilt(path):
    """Yield paths that are nearly this one, written so that Synapse takes them for another."""
    yield path + "x"
    yield path + "/"
    yield path + "/x"
    yield path + "%2F"
    yield path.upper()
    yield "/x" + path
    yield "/" + path
    yield "/x/.." + path
    head, _, tail = path.rpartition("/")
    for between in ("//", "/./", "/x/../", "%2F", "%2f", "/%2e/"):
        yield head + between + tail
        yield "/" + path[1:].replace("/", between, 2)
    yield path.replace("/_", "/%5F", 1)
    yield re.sub("[a-z](?=/|$)", lambda letter: f"%{ord(letter[0]):x}", path)
    yield re.sub("/(api/v1|r0|v[123]|unstable)/", "/v9/", path)


PATTERNS = [re.compile(endpoint["pattern"]) for endpoint in ENDPOINTS]


@pytest.mark.parametrize("path", sorted({path for _, path in CASES}))
def test_what_is_nearly_an_endpoint_is_left_to_the_main_process(raw, path):
    # What Synapse's own patterns match is an endpoint: many are open at their ends.
    near = [uri for uri in spoilt(path) if not any(pattern.match(uri) for pattern in PATTERNS)]
    assert len(near) >= 8
    for uri in near:
        assert raw(uri) == "main", uri


@pytest.fixture(scope="module")
def raw(client):
    """Return a function that sends a URI byte for byte and returns whom it reached."""
    host, port = client.base_url.host, client.base_url.port
    with closing(http.client.HTTPConnection(host, port)) as connection:

        def ask(uri):
            connection.putrequest("GET", uri, skip_accept_encoding=True)
            connection.endheaders()
            response = connection.getresponse()
            response.read()
            assert response.status == 200, (uri, response.status)
            return response.getheader("x-server")

        yield ask


# What the patterns do not say, as they are open in their middle.


@pytest.mark.parametrize(
    ("path", "pool"),
    [
        ("user/@a:b/account_data/m.direct", "account_data"),
        ("user/@a:b/rooms/!r/account_data/m.x", "account_data"),
        ("user/@a:b/rooms/!r/tags", "account_data"),
        ("user/@a:b/rooms/!r/tags/m.favourite", "account_data"),
        ("pushrules/global/content/tags", "push_rules"),
        ("pushrules/global/content/account_data/enabled", "push_rules"),
        ("rooms/!r/state/m.x/tags", "event_creator"),
        ("rooms/!r/event/tags", "rooms"),
        ("user/@a:b/filter/tags", "client_reader"),
        ("sendToDevice/m.x/tags", "to_device"),
        ("room_keys/keys/!r/tags", "keys"),
        ("thirdparty/protocol/tags", "main"),
        ("rooms/!r/forget", "main"),
        ("rooms/!r/report/$e", "main"),
        ("logout/x", "main"),
        ("refreshx", "main"),
    ],
)
def test_name_in_a_path_is_not_taken_for_an_endpoint(client, path, pool):
    for method in METHODS:
        assert arrives_at(client, f"/_matrix/client/v3/{path}", method) == pool
