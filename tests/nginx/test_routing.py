"""Which request goes to which pool, and which user to which worker in it."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from tests.nginx.conftest import USERS
from tests.stack.nginx import DEBUG_HEADERS, SHIPPED, Nginx, check
from tests.stack.process import Process, accepts, free_port

SYNC = "/_matrix/client/v3/sync"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
ROOM = "%21room%3Aexample.org"


@pytest.mark.parametrize(
    ("path", "pool"),
    [
        (SYNC, "initial"),
        (SYNC + "?since=s1", "sync"),
        (SYNC + "?timeout=0&since=s1&filter=%7B%7D", "sync"),
        (SYNC + "?since=", "initial"),
        (SYNC + "?since=s1&full_state=true", "initial"),
        (SYNC + "?since=s1&full_state=false", "sync"),
        (SYNC + "?full_state=true", "initial"),
        (SYNC + "?xsince=s1", "initial"),
        ("/_matrix/client/r0/sync?since=s1", "sync"),
        ("/_matrix/client/unstable/sync?since=s1", "sync"),
        ("/_matrix/client/v3/events", "initial"),
        ("/_matrix/client/v3/events?from=s1", "sync"),
        ("/_matrix/client/r0/events?from=s1", "sync"),
        ("/_matrix/client/api/v1/events?from=s1", "sync"),
        ("/_matrix/client/v3/initialSync", "initial"),
        ("/_matrix/client/r0/initialSync", "initial"),
        ("/_matrix/client/api/v1/initialSync", "initial"),
        (f"/_matrix/client/v3/rooms/{ROOM}/initialSync", "sync"),
        ("/_matrix/client/r0/rooms/!room:example.org/initialSync", "sync"),
        ("/_matrix/client/api/v1/rooms/!room/initialSync", "sync"),
        (SLIDING, "initial"),
        (SLIDING + "?pos=1", "sync"),
        ("/", "main"),
        ("/_matrix/client/versions", "main"),
        ("/_matrix/client/v3/syncx", "main"),
        ("/_matrix/client/v3/sync/", "main"),
        ("/_matrix/client/v3/sync/x", "main"),
        ("/_matrix/client/v2/sync", "main"),
        ("/_matrix/client/v3/SYNC", "main"),
        ("/x/_matrix/client/v3/sync", "main"),
        ("/_matrix/client/v3/rooms/a/b/initialSync", "main"),
        ("/_matrix/client/v3/rooms/initialSync", "main"),
        ("/_matrix/client/v3/eventsx", "main"),
        (SLIDING + "x", "main"),
        ("/_matrix/client/v3/account/whoami", "main"),
    ],
)
def test_path_goes_to_its_pool(site, path, pool):
    server = site.client.get(path)
    name = server.json().get("server", "main")  # the stand-in's whoami does not say its name
    assert name.partition("-")[0] == pool


def test_sliding_sync_is_posted_with_its_body(site):
    echo = site.client.post(SLIDING + "?pos=1", content='{"lists": {}}').json()
    assert echo["server"].startswith("sync-")
    assert (echo["method"], echo["body"]) == ("POST", '{"lists": {}}')


@pytest.mark.parametrize(
    "uri",
    [
        SYNC + "?since=a%2Fb%20c&x=%7B%22a%22%3A1%7D",
        f"/_matrix/client/v3/rooms/{ROOM}/initialSync?",
        "/_matrix/client/v3/rooms/%2F%2e%2e%2F/state?a=%00",
    ],
)
def test_uri_reaches_synapse_as_the_client_wrote_it(site, uri):
    assert site.get(uri).json()["uri"] == uri


def test_router_is_asked_only_where_there_is_a_worker_to_choose(make_site, fake_router):
    site = make_site(router_address=fake_router.address)  # with workers for syncs only
    for path in ("account/whoami", "pushrules/", "user/@a:b/account_data/m.x", "rooms/!r/messages"):
        site.get(f"/_matrix/client/v3/{path}", "a")
    assert fake_router.requests == []
    site.get(SYNC, "a")
    assert len(fake_router.requests) == 1


def workers(site, path, users=USERS):
    """Return each user's set of workers, over three devices in the header and the query."""
    reached = {user: set() for user in users}
    for user in users:
        for device in range(3):
            token = f"token-{user}-{device}"
            reached[user].add(site.server(path, token))
            separator = "&" if "?" in path else "?"
            reached[user].add(site.server(f"{path}{separator}access_token={token}"))
    return reached


@pytest.mark.parametrize(
    "path",
    [
        SYNC,
        SYNC + "?since=s1",
        SLIDING + "?pos=1",
        "/_matrix/client/v3/events?from=s1",
        "/_matrix/client/v3/initialSync",
        f"/_matrix/client/v3/rooms/{ROOM}/initialSync",
    ],
)
def test_all_devices_of_a_user_reach_one_worker_and_users_spread(site, path):
    reached = workers(site, path)
    assert all(len(servers) == 1 for servers in reached.values())
    assert len(set.union(*reached.values())) == 2


def test_a_user_stays_in_place_when_asked_for_concurrently(site):
    def server(number):
        return site.server(SYNC + "?since=s1", f"token-{USERS[0]}-{number % 3}")

    with ThreadPoolExecutor(10) as threads:
        assert len(set(threads.map(server, range(100)))) == 1


def test_requests_without_a_token_take_turns(site):
    servers = [site.server(SYNC + "?since=s1") for _ in range(8)]
    assert servers[:2] * 4 == servers
    assert len(set(servers)) == 2


def test_rejected_token_reaches_one_worker(site):
    spread = set()
    for number in range(20):
        servers = {site.server(SYNC + "?since=s1", f"unknown-{number}") for _ in range(4)}
        assert len(servers) == 1
        spread |= servers
    assert len(spread) == 2


def test_client_cannot_choose_its_worker(site):
    for user in USERS:
        own = site.server(SYNC + "?since=s1", f"token-{user}-0")
        for other in USERS[:5]:
            forged = {"X-User-Identifier": other, "X-User-Identifier-Source": "cache"}
            assert site.server(SYNC + "?since=s1", f"token-{user}-0", **forged) == own


@pytest.mark.parametrize("path", [SYNC, SLIDING, "/_matrix/client/versions"])
def test_identifier_does_not_reach_synapse(site, path):
    forged = {"X-User-Identifier": "bob", "X-User-Identifier-Source": "cache"}
    headers = site.get(path, f"token-{USERS[0]}-0", **forged).json()["headers"]
    assert not [name for name in headers if name.startswith("x-user-identifier")]


@pytest.mark.parametrize("path", [SYNC, "/_matrix/client/versions"])
def test_synapse_sees_the_client(site, path):
    forged = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
    headers = site.get(path, "a", **forged, Host="example.org").json()["headers"]
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["host"] == "example.org"
    assert headers["authorization"] == "Bearer a"


def test_synapses_own_refusal_reaches_the_client(site, pools):
    for name in ("sync-1", "sync-2"):
        pools[name].answer = Response('{"errcode":"M_UNKNOWN_TOKEN","soft_logout":true}', 401)
    response = site.get(SYNC + "?since=s1", "unknown")
    assert response.status_code == 401
    assert response.text == '{"errcode":"M_UNKNOWN_TOKEN","soft_logout":true}'


def test_responses_show_nothing_of_the_routing(site):
    headers = site.get(SYNC, f"token-{USERS[0]}-0").headers
    assert not [name for name in headers if name.startswith(("x-user", "x-upstream"))]


def test_one_line_switches_the_debug_headers_on(make_site):
    site = make_site(DEBUG_HEADERS)
    headers = site.get(SYNC, f"token-{USERS[0]}-0").headers
    assert headers["x-user-identifier"] == USERS[0]
    assert headers["x-user-identifier-source"] in ("whoami", "cache")
    assert headers["x-upstream-address"].startswith("127.0.0.1:")


def test_shipped_files_are_valid_wherever_they_are_installed(tmp_path):
    said = check(tmp_path)
    assert "test is successful" in said
    assert "warn" not in said


def test_nginx_runs_as_an_ordinary_user(pools, router):
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        if user:
            shutil.chown(directory, user)
        addresses = {
            "whoami_router": [router.address],
            "synapse_main": [pools["main"].address],
            "synapse_sync": [pools["sync-1"].address],
            "synapse_initial_sync": [pools["initial-1"].address],
        }
        with Nginx(Path(directory), addresses, user=user) as nginx:
            # More than nginx keeps in memory: it has to write to its temporary files.
            body = "x" * 1_000_000
            echo = httpx.post(nginx.url + SLIDING, content=body).json()
            assert echo["body"] == body
            assert "[emerg]" not in nginx.log_text()
            assert "[warn]" not in nginx.log_text()


# All of it is read-only but /tmp and /dev/shm, both of them empty, and nginx is nobody.
READ_ONLY = """
set -eu
mount --make-rprivate /
mount --bind "$1" /mnt
mount -t tmpfs -o ro tmpfs /var/lib/nginx  # where Debian's nginx writes if nobody says otherwise
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
chmod 1777 /tmp /dev/shm
mkdir "$1"
mount --move /mnt "$1"
mount -o remount,bind,ro "$1"
mount --bind / /
mount -o remount,bind,ro /
exec $2 nginx -e stderr -c "$1/nginx/nginx.conf" -g 'daemon off;'
"""


def test_nginx_needs_no_more_than_a_read_only_root(pools, router):
    with tempfile.TemporaryDirectory(prefix="wr-", dir="/tmp") as name:
        directory, port = Path(name), free_port()
        directory.chmod(0o755)
        files = shutil.copytree(SHIPPED, directory / "nginx")
        for file, old, new in (
            ("conf.d/synapse.conf", "listen 8080;", f"listen 127.0.0.1:{port};"),
            ("conf.d/upstreams.conf", "127.0.0.1:9009", router.address),
            ("conf.d/upstreams.conf", "127.0.0.1:8085", pools["initial-1"].address),
            ("conf.d/upstreams.conf", "127.0.0.1:8086", pools["initial-2"].address),
        ):
            text = (files / file).read_text()
            assert old in text
            (files / file).write_text(text.replace(old, new))
        # Whoever is not root is so in a namespace of their own, and nobody in another.
        ordinary = os.getuid() != 0
        to_root = ["--map-root-user"] if ordinary else []
        to_nobody = (
            "unshare --map-user=65534 --map-group=65534"
            if ordinary
            else "setpriv --reuid=65534 --regid=65534 --clear-groups"
        )
        nginx = Process(
            "nginx",
            ["unshare", "--mount", *to_root, "sh", "-c", READ_ONLY, "sh", directory, to_nobody],
            directory / "log",
            ready=lambda: accepts(f"127.0.0.1:{port}"),
        )
        with nginx:
            body = "x" * 1_000_000  # more than nginx keeps in memory
            echo = httpx.post(f"http://127.0.0.1:{port}{SLIDING}", content=body).json()
            assert echo["body"] == body
