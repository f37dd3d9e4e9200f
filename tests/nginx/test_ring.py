"""What whoami_router.ring computes is what a real nginx picks."""

import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from random import Random

import pytest

from tests.nginx.conftest import USERS as SITE_USERS
from tests.nginx.conftest import new_directory
from tests.nginx.test_readme import readme_nginx
from tests.stack.nginx import temporary_files_in
from tests.stack.process import Process, accepts, free_port
from whoami_router.nginx_conf import load
from whoami_router.nginx_pools import server, survey
from whoami_router.ring import Ring
from whoami_router.where import identifier, place

USERS = 10_000
AT_ONCE = 250

# Nobody listens at these addresses, so nginx names the server that it tried and goes no further.
# (max_fails=0 in each: a server that failed is left out for a while otherwise.)
LISTS = {
    "two": ["127.77.0.1:8083", "127.77.0.1:8084"],
    "three": ["127.77.0.1:8083", "127.77.0.1:8084", "127.77.0.2:8083"],
    "seven": [f"127.77.0.{host}:{7000 + host}" for host in range(7)],
    "one": ["127.77.0.1:8083"],
    "weights": ["127.77.0.1:8083 weight=3", "127.77.0.1:8084", "127.77.0.1:8085 weight=7"],
    "no ports": ["127.77.0.1", "127.77.0.2", "127.77.0.3:80"],
    "unix sockets": ["unix:/nowhere/1.sock", "UNIX:/nowhere/2.sock", "unix:/nowhere/3:8083"],
    "IPv6": ["[::1]:8083", "[0:0::1]:8084", "127.77.0.1:8083", "[::ffff:7f4d:1]:8085"],
    "IPv6 without ports": ["[::ffff:7f4d:1]", "[::ffff:7f4d:2]", "[::ffff:7f4d:3]:80"],
    "names": ["localhost:8083", "LocalHost:8084", "localhost:8085 weight=2", "127.77.0.1:8086"],
    "leading zeros": ["127.77.0.1:08083", "127.77.0.1:8084"],
    "down": ["127.77.0.1:8083", "127.77.0.1:8084 down", "127.77.0.1:8085", "127.77.0.1:8086 down"],
    "heavy one down": ["127.77.0.1:8083 weight=40 down", "127.77.0.1:8084", "127.77.0.1:8085"],
    "one of two down": ["127.77.0.1:8083 down", "127.77.0.1:8084"],
    "all down": ["127.77.0.1:8083 down", "127.77.0.1:8084 down"],
    "the only one down": ["127.77.0.1:8083 down"],
    "twice": ["127.77.0.1:8083", "127.77.0.1:8083 weight=2", "127.77.0.1:8084"],
    "backup": ["127.77.0.1:8083", "127.77.0.1:8084", "127.77.0.1:8085 backup"],
    "one and a backup": ["127.77.0.1:8083", "127.77.0.1:8085 backup"],
    # Both have a point at 2841959533.
    "one point": ["127.77.0.1:20006", "127.77.0.1:20814"],
    "one point, the other way round": ["127.77.0.1:20814", "127.77.0.1:20006"],
    "other parameters": [
        "127.77.0.1:8083 max_conns=1000 fail_timeout=1s",
        "127.77.0.1:8084 max_conns=1000",
    ],
}

NOTHING_TO_CHOOSE = {"one", "all down", "the only one down", "one and a backup"}
CHOICES = [name for name in LISTS if name not in NOTHING_TO_CHOOSE]


def keys(number, seed):
    """Return identifiers as they are in the header: encoded, of all lengths, and fingerprints."""
    random = Random(seed)
    some = [
        "a",
        "0",
        "_",
        "~",
        "-.",
        "%E2%82%AC",
        "%25",
        "a%3Db%2Fc",
        "x" * 255,
        "%F0%9F%98%80" * 60,
    ]
    some += [f"sha256:{random.randbytes(32).hex()}" for _ in range(number // 20)]
    while len(some) < number:
        length = random.randint(1, 12)
        some.append(
            "".join(random.choice("abcdefghijklmnopqrstuvwxyz0123456789_-.") for _ in range(length))
            + str(len(some))
        )
    return some


@dataclass
class Picks:
    """An nginx with an upstream for each list, which says what it tried."""

    address: str

    def of(self, name, keys, *, how="first"):
        """Return the servers that nginx tries for each key, asked over one connection."""
        path = f"/{how}/{list(LISTS).index(name)}?key="
        host, port = self.address.split(":")
        answers = []
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                requests = [f"GET {path}{key} HTTP/1.1\r\nHost: x\r\n\r\n" for key in some]
                connection.sendall("".join(requests).encode())
                answers += tried(connection, len(some))
        return answers


def tried(connection, number):
    """Return what so many responses say, each a list of addresses."""
    received = b""
    while received.count(b"Tried: ") < number or not received.endswith(b"\n"):
        part = connection.recv(1 << 20)
        assert part, received[-1000:]
        received += part
    return [found.decode().split(", ") for found in re.findall(rb"Tried: ([^\r]*)", received)]


def addresses(text):
    """Return what nginx calls the server of this text: each address that it has."""
    if text.lower().startswith("unix:"):
        return {text}
    host, _, port = text.rpartition(":") if re.search(r":\d+$", text) else (text, "", "80")
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return {f"[{to[0]}]:{to[1]}" if ":" in to[0] else f"{to[0]}:{to[1]}" for *_, to in found}


@pytest.fixture(scope="module")
def nginx():
    """nginx with all lists: each is hashed, and ``backup`` is only taken before the hash line."""
    upstreams = ""
    for number, servers in enumerate(LISTS.values()):
        lines = "".join(f"server {text} max_fails=0;\n" for text in servers)
        upstreams += f"upstream pool{number} {{\n{lines} hash $arg_key consistent;\n}}\n"
    with ExitStack() as stack:
        directory = new_directory(stack)
        address = f"127.0.0.1:{free_port()}"
        (directory / "nginx.conf").write_text(
            f"""
            pid {directory}/pid;
            error_log /dev/null;
            worker_processes 1;
            events {{ worker_connections 512; }}
            http {{
                {temporary_files_in(directory)}
                access_log off;
                {upstreams}
                server {{
                    listen {address};
                    keepalive_requests 100000;
                    add_header Tried $upstream_addr always;
                    location ~ ^/first/(?<number>\\d+)$ {{
                        proxy_next_upstream off;
                        proxy_pass http://pool$number;
                    }}
                    location ~ ^/all/(?<number>\\d+)$ {{
                        proxy_pass http://pool$number;
                    }}
                }}
            }}"""
        )
        process = Process(
            "nginx",
            ["nginx", "-e", "stderr", "-c", directory / "nginx.conf", "-g", "daemon off;"],
            directory / "log",
            ready=lambda: accepts(address),
        )
        stack.enter_context(process)
        yield Picks(address)


@pytest.mark.parametrize("name", CHOICES)
def test_users_are_where_nginx_sends_them(nginx, name):
    ring = ring_of(name)
    some = keys(USERS, name)
    expected = [ring.pick(key.encode()).server for key in some]
    assert None not in expected or name == "heavy one down"
    names = {text: addresses(text) for text in set(expected) - {None}}
    wrong = [
        (key, text, found)
        for key, text, [found] in zip(some, expected, nginx.of(name, some), strict=True)
        if text is not None and found not in names[text]
    ]
    assert not wrong, f"{len(wrong)} of {USERS}, such as {wrong[:3]}"


@pytest.mark.parametrize("name", CHOICES)
def test_servers_are_tried_in_the_order_of_the_ring(nginx, name):
    ring = ring_of(name)
    texts = {found: text for text in ring_texts(name) for found in addresses(text)}
    for key, found in zip(*in_order(nginx, name), strict=True):
        # A name may have several addresses, tried one after the other; the ring knows its text.
        nginx_order = [text for text, _ in groupby(texts[address] for address in found)]
        order = [text for text, _ in groupby(ring.order(key.encode()))]
        # After 20 points of servers that were tried nginx leaves the ring and takes turns.
        assert nginx_order[: len(order)] == order
        assert len(order) > 1 or len(nginx_order) == 1 or name in {"weights", "heavy one down"}


def in_order(nginx, name):
    some = keys(500, name)
    return some, nginx.of(name, some, how="all")


@pytest.mark.parametrize("name", ["all down", "the only one down"])
def test_where_all_are_down_nobody_is_picked(nginx, name):
    some = keys(100, name)
    assert {ring_of(name).pick(key.encode()).server for key in some} == {None}
    # Without a server nginx says the name of the upstream.
    assert {found for [found] in nginx.of(name, some)} == {f"pool{list(LISTS).index(name)}"}


@pytest.mark.parametrize("name", ["one", "one and a backup"])
def test_one_server_has_all_users(nginx, name):
    some = keys(100, name)
    assert {ring_of(name).pick(key.encode()).server for key in some} == {"127.77.0.1:8083"}
    assert {found for [found] in nginx.of(name, some)} == {"127.77.0.1:8083"}


def test_where_too_many_points_are_down_nginx_takes_turns(nginx):
    ring = ring_of("heavy one down")
    some = [key for key in keys(2000, 0) if ring.pick(key.encode()).server is None]
    assert len(some) > 500
    # Each twice in a row: a key that nginx does hash has the same server both times.
    found = [found for [found] in nginx.of("heavy one down", [key for key in some for _ in "12"])]
    same = [key for key, one, two in zip(some, found[::2], found[1::2], strict=True) if one == two]
    assert not same


def test_without_a_key_nginx_takes_turns(nginx):
    assert ring_of("two").pick(b"").server is None
    found = [found for [found] in nginx.of("two", [""] * 100)]
    assert found.count("127.77.0.1:8083") == 50


def ring_of(name):
    return Ring([server(text.split()) for text in LISTS[name]])


def ring_texts(name):
    return [text.split()[0] for text in LISTS[name]]


def test_where_names_the_worker_that_each_users_requests_reach(site, pools):
    configuration = load(site.nginx.files / "nginx.conf")
    found = {pool.name: pool for pool in survey(configuration).pools}
    names = {server.address: name for name, server in pools.items()}
    for pool, path in (
        ("synapse_sync", "/_matrix/client/v3/sync?since=s1"),
        ("synapse_initial_sync", "/_matrix/client/v3/sync"),
    ):
        reached = {site.server(path, f"token-{user}-0") for user in SITE_USERS}
        assert len(reached) == 2
        for user in SITE_USERS:
            picked = place(found[pool], identifier(f"@{user}:example.org")).pick.server
            assert site.server(path, f"token-{user}-1") == names[picked]


def test_where_names_the_worker_of_each_user_of_the_readmes_lines(router, pools):
    copied = {
        "snippets/whoami_router.conf",
        "snippets/route_by_user.conf",
        "snippets/debug_headers.conf",
        "conf.d/maps.conf",
    }
    names = {server.address: name for name, server in pools.items()}
    with readme_nginx(router, pools, copied=copied) as (client, directory):
        [pool] = survey(load(directory / "nginx/nginx.conf")).pools
        for user in SITE_USERS:
            headers = {"authorization": f"Bearer token-{user}-0"}
            reached = client.get("/_matrix/client/v3/sync", headers=headers).json()["server"]
            assert names[place(pool, user).pick.server] == reached
