"""Every endpoint that Synapse's workers serve arrives at its pool, and nothing else does."""

import http.client
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from starlette.responses import JSONResponse

from tests.endpoints.samples import samples
from tests.fake_synapse import served
from tests.stack.nginx import POOLS, Nginx

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
ENDPOINTS = json.loads((Path(__file__).parents[1] / "endpoints/synapse.json").read_text())[
    "endpoints"
]

# Where what the documentation groups goes, if it belongs to no stream.
GROUPS = {
    "Federation requests": "federation_reader",
    "Inbound federation transaction request": "federation_inbound",
    "Client API requests": "client_reader",
    "Admin API requests": "client_reader",
    "Encryption requests": "keys",
    "Registration/login requests": "login",
    "Event sending requests": "event_creator",
    "Pagination requests": "pagination",
    "Unstable MSC4140 support": "client_reader",
    "Stabilised Delegated Authentication support": "client_reader",
}
APPS = {"media_repository": "media", "user_dir": "user_directory"}
SINGLE_SIGN_ON = "only with SSO; one process for all SSO"
OF_A_ROOM = re.compile(r"/(rooms/\.\*/|summary/|room_summary/)")

# What follows where a pattern is open at its end, by the last name in it.
OPEN = {
    "redact": ["/$event", "/$event/1"],
    "send": ["/m.room.message/1"],
    "receipt": ["/m.read/$event"],
    "typing": ["/@alice:example.org"],
    "account_data": ["/m.direct"],
    "tags": ["", "/m.favourite"],
    "query": ["", "/example.org", "/example.org/ed25519:1"],
    "redirect": ["", "/oidc"],
    "pick_username": ["/account_details", "/check"],
}


def paths(pattern):
    """Return paths that the pattern is for, at least one for each version."""
    for path in samples(pattern):
        if path.endswith("/"):
            yield path + "x"
        elif pattern.endswith(("$", ")")):
            yield path
        else:
            for rest in OPEN.get(path.rpartition("/")[2], [""]):
                yield path + rest


def expected_pool(pattern, path, method):
    """Return the pool that the shipped files are to send this to, as the data has it."""
    entries = [endpoint for endpoint in ENDPOINTS if endpoint["pattern"] == pattern]
    streams = {entry["stream"] for entry in entries} - {None}
    if streams:
        [stream] = streams
        return stream
    apps = {entry["app"] for entry in entries} & APPS.keys()
    if apps:
        [app] = apps
        return APPS[app]
    [entry] = entries
    if entry["condition"] == SINGLE_SIGN_ON or method not in served_methods(entry):
        return "main"
    if entry["group"] == "Sync requests":
        return "sync" if "/rooms/" in path else "initial_sync"
    if entry["group"] == "Client API requests" and OF_A_ROOM.search(pattern):
        return "rooms"
    return GROUPS[entry["group"]]


def served_methods(entry):
    methods = entry.get("methods", METHODS)
    return {*methods, *["HEAD"] * ("GET" in methods)}


@dataclass
class Labelled:
    """An ASGI application that answers everything with its name and the URI that it was asked."""

    name: str

    async def __call__(self, scope, receive, send):
        uri = scope["raw_path"].decode()
        await JSONResponse({"uri": uri}, headers={"X-Server": self.name})(scope, receive, send)


@pytest.fixture(scope="module")
def labelled():
    """Return the address of a stand-in for each pool."""
    with ExitStack() as stack:
        yield {pool: stack.enter_context(served(Labelled(pool))) for pool in POOLS}


@pytest.fixture(scope="module")
def start(labelled, router):
    """Return a function that starts an nginx with these pools."""
    with ExitStack() as stack:

        def start(*edits, without=()):
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="wr-site-")))
            directory.chmod(0o755)
            upstreams = {
                f"synapse_{pool}": [address]
                for pool, address in labelled.items()
                if pool not in without
            }
            nginx = Nginx(
                directory,
                {"whoami_router": [router.address], **upstreams},
                edits=edits,
            )
            stack.enter_context(nginx)
            return stack.enter_context(httpx.Client(base_url=nginx.url, timeout=30))

        yield start


@pytest.fixture(scope="module")
def client(start):
    return start()


def arrives_at(client, path, method="GET"):
    response = client.request(method, path)
    assert response.status_code == 200, response.text
    server = response.headers["x-server"]
    if method != "HEAD":
        assert response.json()["uri"] == path
    return server


CASES = sorted(
    {(pattern, path) for pattern in (e["pattern"] for e in ENDPOINTS) for path in paths(pattern)}
)


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
    with ExitStack() as stack:
        connection = http.client.HTTPConnection(host, port)
        stack.callback(connection.close)

        def ask(uri):
            connection.putrequest("GET", uri, skip_accept_encoding=True)
            connection.endheaders()
            response = connection.getresponse()
            response.read()
            assert response.status == 200, (uri, response.status)
            return response.getheader("x-server")

        yield ask


# Of which the administrator says that there is no worker, or another one.

A_PATH = {expected_pool(pattern, path, "PUT"): path for pattern, path in CASES}


@pytest.mark.parametrize("pool", sorted(A_PATH.keys() - {"main", "sync", "initial_sync"}))
def test_pool_without_workers_falls_back_to_the_main_process(start, pool):
    assert arrives_at(start(without=[pool]), A_PATH[pool], "PUT") == "main"


def test_pool_without_workers_falls_back_to_another_pool_that_is_named(start):
    client = start(("conf.d/upstreams.conf", "synapse_keys;", "synapse_client_reader;"))
    assert arrives_at(client, A_PATH["keys"]) == "client_reader"


@pytest.mark.parametrize("stream", ["account_data", "push_rules"])
def test_readers_serve_what_is_read_of_a_stream_that_the_main_process_writes(start, stream):
    file = "conf.d/upstreams.conf"
    written, read = [f"    {f'{stream}{end}':26} synapse_{stream};" for end in ("", "_read")]
    readers = read.replace(f"synapse_{stream}", "synapse_client_reader")
    client = start((file, f"{written}\n", ""), (file, read, readers))
    for method in METHODS:
        reached = arrives_at(client, A_PATH[stream], method)
        assert reached == ("client_reader" if method in ("GET", "HEAD") else "main")


def test_single_sign_on_is_switched_on_by_one_line(start, client):
    found = [
        path for e in ENDPOINTS if e["condition"] == SINGLE_SIGN_ON for path in paths(e["pattern"])
    ]
    assert len(found) > 10
    line = f"    #{'sso':25} synapse_sso;"
    on = start(("conf.d/upstreams.conf", line, line.replace("#", "")))
    for path in found:
        assert arrives_at(client, path) == "main"
        assert arrives_at(on, path) == "sso"


def test_matrix_authentication_service_is_switched_on_by_its_lines(start, labelled):
    file = "conf.d/upstreams.conf"
    lines = [
        f"    #{group:25} matrix_authentication_service;" for group in ("login", "session", "sso")
    ]
    client = start(
        (file, f"    {'login':26} synapse_login;\n", ""),
        *((file, line, line.replace("#", "")) for line in lines),
        (file, "server 127.0.0.1:8180;", f"server {labelled['typing']};"),
    )
    for path in ("login", "login/sso/redirect", "logout", "logout/all", "refresh"):
        assert arrives_at(client, f"/_matrix/client/v3/{path}", "POST") == "typing"
    assert arrives_at(client, "/_matrix/client/v3/register", "POST") == "login"
