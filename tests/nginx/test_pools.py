"""The table in conf.d/upstreams.conf: which pool serves what, as an administrator says it there."""

import re
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.endpoints.cases import CASES, ENDPOINTS, METHODS, WITH_SSO, expected_pool, paths
from tests.fake_synapse import FakeSynapse, served
from tests.nginx.conftest import USERS, arrives_at, new_directory
from tests.stack.nginx import POOLS, SHIPPED, SINGLE_SIGN_ON, Nginx

DOCUMENT = Path(__file__).parents[2] / "docs/nginx.md"
FILE = "conf.d/upstreams.conf"
UPSTREAMS = (SHIPPED / FILE).read_text()
[TABLE] = re.findall(r"^map \$endpoint_group \$pool {.*?^}\n", UPSTREAMS, re.DOTALL | re.MULTILINE)

A_PATH = {expected_pool(pattern, path, "PUT"): path for pattern, path in CASES}


@pytest.mark.parametrize("pool", sorted(A_PATH.keys() - {"main", "sync", "initial_sync"}))
def test_pool_without_workers_falls_back_to_the_main_process(start, pool):
    assert arrives_at(start(without=[pool]), A_PATH[pool], "PUT") == "main"


def test_pool_without_workers_falls_back_to_another_pool_that_is_named(start):
    client = start((FILE, "synapse_keys;", "synapse_client_reader;"))
    assert arrives_at(client, A_PATH["keys"]) == "client_reader"


@pytest.mark.parametrize("stream", ["account_data", "push_rules"])
def test_readers_serve_what_is_read_of_a_stream_that_the_main_process_writes(start, stream):
    written, read = [f"    {f'{stream}{end}':26} synapse_{stream};" for end in ("", "_read")]
    readers = read.replace(f"synapse_{stream}", "synapse_client_reader")
    client = start((FILE, f"{written}\n", ""), (FILE, read, readers))
    for method in METHODS:
        reached = arrives_at(client, A_PATH[stream], method)
        assert reached == ("client_reader" if method in ("GET", "HEAD") else "main")


def test_single_sign_on_is_switched_on_by_one_line(start):
    client = start()
    found = [path for e in ENDPOINTS if e["condition"] == WITH_SSO for path in paths(e["pattern"])]
    assert len(found) > 10
    on = start(SINGLE_SIGN_ON)
    for path in found:
        assert arrives_at(client, path) == "main"
        assert arrives_at(on, path) == "sso"


def test_matrix_authentication_service_is_switched_on_by_its_lines(start, labelled):
    lines = [
        f"    #{group:25} matrix_authentication_service;" for group in ("login", "session", "sso")
    ]
    client = start(
        (FILE, f"    {'login':26} synapse_login;\n", ""),
        *((FILE, line, line.replace("#", "")) for line in lines),
        (FILE, "server 127.0.0.1:8180;", f"server {labelled['typing']};"),
    )
    for version in ("r0", "v3"):
        for path in ("login", "login/sso/redirect", "logout", "logout/all", "refresh"):
            assert arrives_at(client, f"/_matrix/client/{version}/{path}", "POST") == "typing"
    assert arrives_at(client, "/_matrix/client/v3/register", "POST") == "login"


def test_upstreams_without_a_table_go_on_working(start):
    client = start((FILE, TABLE, ""))
    assert arrives_at(client, "/_matrix/client/v3/sync?since=s1") == "sync"
    assert arrives_at(client, "/_matrix/client/v3/sync") == "initial_sync"
    for path in {path for _, path in CASES if not path.endswith(("ync", "/events"))}:
        assert arrives_at(client, path, "PUT") == "main"


def test_documented_table_does_what_is_said_of_it(start):
    [table] = re.findall(r"```nginx\n(map .*?)```", DOCUMENT.read_text(), re.DOTALL)
    client = start((FILE, TABLE, table))
    assert arrives_at(client, "/_matrix/client/v3/sync?since=s1") == "sync"
    assert arrives_at(client, "/_matrix/client/v3/sync") == "sync"
    assert arrives_at(client, "/_matrix/media/v3/config") == "media"
    assert arrives_at(client, "/_matrix/client/v3/joined_rooms") == "main"


def test_name_that_is_no_pool_is_said_to_the_client(start):
    client = start((FILE, "synapse_keys;", "synapse_kyes;"))
    response = client.post("/_matrix/client/v3/keys/query")
    assert response.status_code == 503
    assert "synapse_kyes" in response.json()["error"]


def test_documented_groups_and_keys_are_those_of_the_files():
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| .*? \| ([^|]*) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    documented = {group: key for groups, key in rows for group in re.findall(r"\w+", groups)}
    routes = (SHIPPED / "conf.d/routes.conf").read_text()

    def lines(variable):
        [body] = re.findall(rf"^map \S+ \{variable} {{(.*?)^}}", routes, re.DOTALL | re.MULTILINE)
        return dict(re.findall(r"^    (\w+) +(\S+);", body, re.MULTILINE))

    words = {
        "$token_routing_key": "token",
        "$room_routing_key": "room",
        "$remote_addr": "their address",
    }
    keyed = {
        group: words[key] for group, key in lines("$routing_key").items() if group != "default"
    }
    keyed |= {group: "user" for group, on in lines("$keyed_by_user").items() if on == "1"}
    assert {
        group: key.partition(",")[0]
        for group, key in documented.items()
        if key not in ("", "in turn")
    } == keyed
    named = set(re.findall(r"^    #?(\w+) +\w+;", TABLE, re.MULTILINE)) - {"default"}
    assert named | {"main"} == documented.keys()


def test_servers_may_have_names(start, labelled):
    address = labelled["media"]
    name = address.replace("127.0.0.1", "localhost")
    resolver = "resolver 127.0.0.11 valid=10s;"
    client = start((FILE, f"server {address}", f"server {name}"), (FILE, f"#{resolver}", resolver))
    assert arrives_at(client, "/_matrix/media/v3/config") == "media"


def test_every_pool_keeps_its_users_and_connections():
    for name in POOLS:
        [body] = re.findall(
            rf"^upstream synapse_{name} {{(.*?)^}}", UPSTREAMS, re.DOTALL | re.MULTILINE
        )
        lines = [line.partition("#")[0].strip() for line in body.splitlines() if line.strip()]
        servers = [line for line in lines if line.startswith("server ")]
        others = set(lines) - set(servers)
        assert {"keepalive 32;", "keepalive_timeout 30s;"} <= others
        if name != "main":
            assert "hash $routing_key consistent;" in others
            assert all(line.endswith(" max_fails=0;") for line in servers), name


def test_no_upstream_is_this_nginx_itself():
    [port] = re.findall(
        r"^    listen (\d+);", (SHIPPED / "conf.d/synapse.conf").read_text(), re.MULTILINE
    )
    addresses = re.findall(r"^    server 127.0.0.1:(\d+)", UPSTREAMS, re.MULTILINE)
    assert len(addresses) == len(set(addresses)) > len(POOLS)
    assert port not in addresses


def test_one_more_worker_moves_only_those_it_takes_over(pools, router):
    with ExitStack() as stack:
        addresses = [stack.enter_context(served(FakeSynapse(name))) for name in "abc"]

        def reached(number):
            upstreams = {
                "whoami_router": [router.address],
                "synapse_main": [pools["main"].address],
                "synapse_sync": addresses[:number],
                "synapse_initial_sync": addresses[:number],
            }
            with (
                Nginx(new_directory(stack), upstreams) as nginx,
                httpx.Client(base_url=nginx.url) as client,
            ):
                return {
                    user: client.get(
                        "/_matrix/client/v3/sync",
                        headers={"authorization": f"Bearer token-{user}-0"},
                    ).json()["server"]
                    for user in USERS
                }

        before, after = reached(2), reached(3)
    moved = {user for user in USERS if before[user] != after[user]}
    assert moved == {user for user in USERS if after[user] == "c"} != set()
