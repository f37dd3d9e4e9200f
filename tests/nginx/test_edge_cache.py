"""The optional edge cache: what no single line of its files promises (see edge_cache.py)."""

import os
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest
import yaml

from tests.nginx.conftest import USERS, new_directory
from tests.nginx.edge_cache import CACHE, SYNC, ZONE, edge_site, files, identifier, known
from tests.nginx.test_traps import Setting
from tests.stack.nginx import DEBUG_HEADERS, EDGE_CACHE, SHIPPED, Nginx
from tests.stack.process import wait_until
from tests.stack.router import Router
from whoami_router.settings import Settings


@pytest.fixture
def setting(make_site, pools, fake_router, dead_address, hung_address):
    return Setting(make_site, [], pools, fake_router, dead_address, hung_address)


def ask(site, tokens):
    """Sync with each token, a few at once; return the identifiers, or the status of a failure."""

    def sync(token):
        response = site.get(SYNC, token)
        if response.status_code != 200:
            return response.status_code
        return response.headers.get("x-user-identifier")

    with ThreadPoolExecutor(8) as clients:
        return list(clients.map(sync, tokens))


def test_it_is_off_as_shipped(make_site, fake_router, setting):
    site = edge_site(setting)
    identifier(site, token="a")
    assert len(files(site)) == 1
    assert len(fake_router.requests) == 1
    off = make_site(router_address=fake_router.address)
    for _ in range(3):
        off.get(SYNC, "a")
    assert len(fake_router.requests) == 4
    assert files(off) == []


def test_only_nginx_itself_can_read_what_is_written(setting):
    site = edge_site(setting)
    identifier(site, token="very-secret")
    [file] = files(site)
    assert b"very-secret" in file.read_bytes()  # which is why
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


TOKEN = "access_token={}"
SERVICE = "access_token=service&user_id=@{}:h"


def two_clients(query):
    return [f"{SYNC}&{query.format(name)}" for name in "ab"]


@pytest.mark.parametrize(
    ("file", "old", "new", "query"),
    [
        (ZONE, "access_token=$query_access_token", "access_token=$arg_access_token", TOKEN),
        (ZONE, "access_token=$query_access_token", "", TOKEN),
        (ZONE, "user_id=$asserted_user_id", "user_id=$arg_user_id", SERVICE),
        (ZONE, "user_id=$asserted_user_id", "", SERVICE),
        (CACHE, "$edge_cache_query $http_authorization", "$http_authorization", TOKEN),
        (CACHE, "$edge_cache_query $http_authorization", "$http_authorization", SERVICE),
        (CACHE, "$edge_cache_query $http_authorization", "$args $http_authorization", TOKEN),
        (CACHE, "$edge_cache_query $http_authorization", "$uri", TOKEN),
    ],
)
def test_wrong_key_would_give_one_client_the_answer_of_another(setting, file, old, new, query):
    right = edge_site(setting)
    assert [identifier(right, path) for path in two_clients(query)] == ["a", "b"]
    wrong = edge_site(setting, (file, old, new))
    assert [identifier(wrong, path) for path in two_clients(query)] == ["a", "a"]


def test_known_users_keep_their_worker_while_the_router_is_dead(make_site, main, tmp_path):
    with Router(tmp_path, f"http://{main.address}", "--edge-ttl", "1") as router:
        site = make_site(EDGE_CACHE, DEBUG_HEADERS, router_address=router.address)
        tokens = [f"token-{user}-{device}" for user in USERS for device in range(3)]
        before = {token: site.server(SYNC, token) for token in tokens}
        last = time.monotonic()
    wait_until(lambda: time.monotonic() > last + 2, "every answer is too old")
    for token in tokens * 2:
        response = site.get(SYNC, token)
        assert response.headers["x-user-identifier"] == token.split("-")[1]
        assert response.json()["server"] == before[token]


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"authorization": "Bearer nobodys"}, SYNC),
        ({}, SYNC),
        ({}, f"{SYNC}&access_token=nobodys"),
    ],
)
def test_no_fallback_is_remembered(site, make_site, router, headers, path):
    site = make_site(EDGE_CACHE, DEBUG_HEADERS, router_address=router.address)
    for _ in range(3):
        response = site.client.get(path, headers=headers)
        assert response.headers["x-user-identifier-source"] in ("rejected", "none")
    assert files(site) == []


def test_edge_ttl_is_how_long_it_lasts(make_site, main, tmp_path):
    with Router(tmp_path, f"http://{main.address}", "--edge-ttl", "1") as router:
        site = make_site(EDGE_CACHE, DEBUG_HEADERS, router_address=router.address)
        token = f"token-{USERS[0]}-0"

        def source():
            return site.get(SYNC, token).headers["x-user-identifier-source"]

        assert source() == "whoami"
        assert source() == "whoami"  # repeated by nginx: the router would say "cache"
        wait_until(lambda: source() == "cache", "the router is asked again", seconds=10)


def test_zero_switches_it_off(make_site, main, tmp_path):
    with Router(tmp_path, f"http://{main.address}", "--edge-ttl", "0") as router:
        site = make_site(EDGE_CACHE, router_address=router.address)
        for _ in range(3):
            site.get(SYNC, f"token-{USERS[0]}-0")
        assert files(site) == []


# Its bounds.


def test_zone_bounds_what_is_written(setting):
    """As nginx's own manager does not: it looks every ten seconds."""
    site = edge_site(setting, (ZONE, "whoami_router:4m", "whoami_router:64k"))
    tokens = [f"t{number}" for number in range(1500)]
    for _ in range(2):
        assert ask(site, tokens) == tokens
        assert 100 < len(files(site)) < 600
    assert sum(file.stat().st_blocks * 512 for file in files(site)) <= 4096 * len(files(site))


# A tmpfs of its own, which nginx alone sees.
OWN_TMPFS = """#!/bin/sh
exec unshare --mount {to_root} sh -c '
    set -e
    mount -t tmpfs -o size=20m,mode=755 tmpfs {edge}
    exec nginx "$@"
' sh "$@"
"""


def test_room_is_made_in_a_tmpfs_before_it_is_full(pools, fake_router):
    with ExitStack() as stack:
        directory = new_directory(stack)
        edge, program = directory / "edge", directory / "nginx-with-tmpfs"
        edge.mkdir()
        program.write_text(
            OWN_TMPFS.format(to_root="--map-root-user" if os.getuid() else "", edge=edge)
        )
        program.chmod(0o755)
        fake_router.answer = known
        addresses = {
            "whoami_router": [fake_router.address],
            "synapse_main": [pools["main"].address],
            "synapse_sync": [pools["sync-1"].address],
            "synapse_initial_sync": [pools["initial-1"].address],
        }
        nginx = Nginx(directory, addresses, edits=[EDGE_CACHE], program=str(program))
        stack.enter_context(nginx)
        client = stack.enter_context(httpx.Client(base_url=nginx.url, timeout=30))

        def left():
            """Return how many MiB are free, where nginx sees it."""
            found = os.statvfs(f"/proc/{nginx.pid}/root{edge}")
            return found.f_bavail * found.f_frsize / 2**20

        assert 19 < left() <= 20
        for number in range(1500):
            response = client.get(SYNC, headers={"authorization": f"Bearer t{number}"})
            assert response.status_code == 200
        # As shipped, 16 are to stay free. nginx looks every ten seconds.
        wait_until(lambda: left() >= 16, "room is made", seconds=20)


def test_directory_that_cannot_be_written_drops_clients_with_new_tokens(setting):
    """As the documents say: nginx knows no way to go on without it."""
    site = edge_site(setting)
    assert identifier(site, token="known") == "known"
    directory = site.nginx.files.parent / "edge"
    directory.rename(directory.with_name("elsewhere"))
    with pytest.raises(httpx.RemoteProtocolError):
        identifier(site, token="new")
    assert site.get(SYNC).status_code == 200  # nothing to be remembered


@pytest.mark.parametrize(
    "query",
    ["?%" * 3900 + "&=", "%" * 7800, "&" * 7800 + "=%", "a%" * 3900, "&access_token=" * 550],
)
def test_no_request_keeps_nginx_busy(setting, query):
    """Expressions that backtrack would take seconds for it, and hold everybody up."""
    site = edge_site(setting)
    start = time.monotonic()
    site.get(f"{SYNC}&{query}", authorization="Basic x")
    assert time.monotonic() - start < 2


def test_open_files_beyond_the_limit_would_break_routing(setting):
    limit = ("nginx.conf", "worker_rlimit_nofile 20000;", "worker_rlimit_nofile 150;")
    tokens = [f"t{number}" for number in range(400)]
    bounded = edge_site(setting, limit, (CACHE, "max=12000", "max=50"))
    assert ask(bounded, tokens * 2) == tokens * 2
    unbounded = edge_site(setting, limit)
    with suppress(httpx.TransportError):  # that bad
        assert ask(unbounded, tokens * 3) != tokens * 3


def shipped_number(file, pattern):
    [number] = re.findall(pattern, (SHIPPED / file).read_text(), re.MULTILINE)
    return int(number)


def test_compose_has_room_for_it_with_many_processors():
    compose = yaml.safe_load((SHIPPED.parent / "docker-compose.yml").read_text())
    [gigabytes] = re.fullmatch(r"(\d+)g", compose["services"]["nginx"]["shm_size"]).groups()
    zone = shipped_number(ZONE, r"keys_zone=whoami_router:(\d+)m")
    kept_open = shipped_number(CACHE, r"^open_file_cache +max=(\d+) ")
    workers = 32
    assert (zone * 8_000 + kept_open * workers) * 4096 < int(gigabytes) * 2**30


def test_shipped_bounds_fit_each_other():
    descriptors = shipped_number("nginx.conf", r"^worker_rlimit_nofile (\d+);")
    connections = shipped_number("nginx.conf", r"^ +worker_connections (\d+);")
    kept_open = shipped_number(CACHE, r"^open_file_cache +max=(\d+) ")
    assert connections + kept_open + 1000 < descriptors
    # Renewed when it is asked for after --edge-ttl, by a client that polls for half a minute or so.
    assert shipped_number(ZONE, r" inactive=(\d+)m;") * 60 > 2 * Settings().edge_ttl
    zone = shipped_number(ZONE, r"keys_zone=whoami_router:(\d+)m")
    comment = " ".join((SHIPPED / ZONE).read_text().replace("\n#", "").split())
    sizes = f"{zone * 8_000 * 4 // 1_000} MiB here and {kept_open * 4 // 1_000} MiB for each worker"
    assert sizes in comment
