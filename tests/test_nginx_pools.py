import re
import shutil
from pathlib import Path

import pytest

from tests.nginx.test_readme import documented_configuration
from whoami_router.nginx_conf import load
from whoami_router.nginx_maps import Undecided
from whoami_router.nginx_pools import (
    GROUPS_BY_USER,
    NoAnswer,
    server,
    survey,
)
from whoami_router.ring import Server

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "nginx"
COMPOSE = ROOT / "deploy/compose/upstreams.conf"

A, B = "127.0.0.1:8083", "127.0.0.1:8084"
SERVERS = f"server {A}; server {B};"
ASKS = "auth_request /r; auth_request_set $user_identifier $upstream_http_x_user_identifier;"
KEY = 'map $user_identifier $sync_routing_key { "" $token; default $user_identifier; }'


def site(upstream, *, location=f"location /sync {{ {ASKS} proxy_pass http://pool; }}", more=KEY):
    """Return a whole configuration with one upstream, to which one location goes."""
    return f"events {{ }} http {{ {more} upstream pool {{ {upstream} }} server {{ {location} }} }}"


@pytest.fixture
def look(tmp_path):
    """Return a function that writes a configuration and returns its survey."""

    def look(text, only=()):
        (tmp_path / "own.conf").write_text(text)
        return survey(load(tmp_path / "own.conf"), only)

    return look


def named(found):
    return {pool.name: (pool.groups, pool.locations) for pool in found.pools}


BY_USER = {
    "synapse_sync": (("sync",), ()),
    "synapse_initial_sync": (("initial_sync",), ()),
    "synapse_account_data": (("account_data_read",), ()),
    "synapse_push_rules": (("push_rules_read",), ()),
}


@pytest.mark.parametrize("place", ["/etc/nginx", "checkout"])
def test_pools_of_the_shipped_files_are_found(place, tmp_path, monkeypatch):
    if place == "checkout":
        monkeypatch.chdir(ROOT)
        found = survey(load("nginx/nginx.conf"))
    else:
        found = survey(load(shutil.copytree(SHIPPED, tmp_path / "nginx") / "nginx.conf"))
    assert named(found) == BY_USER
    assert found.notes == ()
    assert found.pools[0].servers == (Server(A), Server(B))
    assert all(pool.key.is_identifier for pool in found.pools)


def test_pools_of_compose_are_found_as_they_are_mounted(tmp_path):
    files = shutil.copytree(SHIPPED, tmp_path / "nginx")
    shutil.copy(COMPOSE, files / "conf.d")
    found = survey(load(files / "nginx.conf"))
    assert named(found) == BY_USER
    assert [one.text for one in found.pools[0].servers] == [
        "unix:/sockets/synapse-sync-1.sock",
        "unix:/sockets/synapse-sync-2.sock",
    ]


@pytest.mark.parametrize("file", [SHIPPED / "conf.d/upstreams.conf", COMPOSE])
def test_file_with_the_upstreams_says_enough(file):
    found = survey(load(file))
    assert named(found) == BY_USER
    [note] = found.notes
    assert "without $routing_key" in note


def test_groups_that_are_taken_to_go_by_user_are_those_of_the_shipped_files():
    [keyed] = re.findall(
        r"map \$endpoint_group \$keyed_by_user \{(.*?)\}",
        (SHIPPED / "conf.d/routes.conf").read_text(),
        re.DOTALL,
    )
    assert tuple(re.findall(r"(\w+) +1;", keyed)) == GROUPS_BY_USER


def test_table_of_ones_own_counts(tmp_path):
    files = shutil.copytree(SHIPPED, tmp_path / "nginx")
    upstreams = files / "conf.d/upstreams.conf"
    upstreams.write_text(
        "map $endpoint_group $pool { default synapse_main; sync workers; initial_sync workers; }"
        f"upstream workers {{ hash $routing_key consistent; {SERVERS} }}"
        "upstream synapse_main { server 127.0.0.1:8008; } upstream whoami_router { server a; }"
    )
    assert named(survey(load(files / "nginx.conf"))) == {"workers": (("sync", "initial_sync"), ())}


def test_lines_of_the_readme_make_a_pool(tmp_path):
    files = shutil.copytree(SHIPPED / "snippets", tmp_path / "snippets").parent
    (files / "conf.d").mkdir()
    shutil.copy(SHIPPED / "conf.d/maps.conf", files / "conf.d")
    (files / "conf.d/own.conf").write_text(documented_configuration({}))
    (files / "nginx.conf").write_text("events { } http { include conf.d/*.conf; }")
    for file in ("nginx.conf", "conf.d/own.conf"):
        found = survey(load(files / file))
        assert named(found) == {
            "your_sync_workers": ((), ("location ~ ^/_matrix/client/(r0|v3)/sync$",))
        }
        assert found.pools[0].key.of("alice") == "alice"
        assert bool(found.notes) is (file != "nginx.conf")


POOLS = [
    f"upstream pool {{ hash $sync_routing_key consistent; {SERVERS} }}",
    f"{KEY} upstream pool {{ hash $sync_routing_key consistent; {SERVERS} }}",
    site(f"hash $sync_routing_key consistent; {SERVERS}"),
    site(f"{SERVERS} hash $sync_routing_key consistent;"),
    site(f"zone a 1m; least_conn; hash $user_identifier consistent; {SERVERS} keepalive 2;"),
    site(f"hash ${{USER_identifier}} consistent; {SERVERS}"),
    site(
        f"hash $who consistent; {SERVERS}",
        location="location / { auth_request_set $who $Upstream_http_X_User_Identifier; }",
    ),
]


@pytest.mark.parametrize("text", POOLS)
def test_upstream_that_is_hashed_by_user_is_a_pool(look, text):
    [pool] = look(text).pools
    assert pool.name == "pool"
    assert pool.servers == (Server(A), Server(B))
    assert pool.key.is_identifier


def test_part_of_a_configuration_need_not_say_what_goes_there(look):
    assert (
        look(f"{KEY} upstream pool {{ hash $sync_routing_key consistent; {SERVERS} }}").notes == ()
    )


def test_pool_to_which_nothing_is_seen_to_go_is_noted(look):
    found = look(site(f"hash $sync_routing_key consistent; {SERVERS}", location=f"{ASKS}"))
    assert named(found) == {"pool": ((), ())}
    [note] = found.notes
    assert note.startswith("No location is seen to go to pool (")


def test_groups_and_locations_that_go_there_are_both_named(look):
    found = look(
        site(
            f"hash $sync_routing_key consistent; {SERVERS}",
            location=f"{ASKS} location /x {{ proxy_pass http://pool; }}"
            "location / { proxy_pass http://$to; }",
            more=KEY + "map $endpoint_group $to { sync pool; other another; }",
        )
    )
    assert named(found) == {"pool": (("sync",), ("location /x",))}


def test_groups_of_a_location_are_those_that_the_key_is_the_user_for(look):
    keys = "map $endpoint_group $routing_key { sync $user_identifier; rooms $uri; }"
    found = look(site(f"hash $routing_key consistent; {SERVERS}", more=keys))
    assert named(found) == {"pool": (("sync",), ("location /sync",))}


def test_location_whose_key_is_the_user_in_any_case_is_for_no_group_in_particular(look):
    more = KEY + "map $endpoint_group $unrelated { sync 1; }"
    found = look(site(f"hash $sync_routing_key consistent; {SERVERS}", more=more))
    assert named(found) == {"pool": ((), ("location /sync",))}


WAYS_THERE = [
    "proxy_pass http://pool;",
    "proxy_pass https://POOL/;",
    "proxy_pass http://pool$request_uri;",
    "proxy_pass http://pool/a?b=$c;",
    "if ($x) { proxy_pass http://pool; }",
]


@pytest.mark.parametrize("way", WAYS_THERE)
def test_location_is_named_however_it_passes_requests_on(look, way):
    text = site(
        f"hash $sync_routing_key consistent; {SERVERS}", location=f"location /x {{ {ASKS} {way} }}"
    )
    assert named(look(text)) == {"pool": ((), ("location /x",))}


VARIABLES = [
    ("set $to pool;", ("sync", "other")),
    ("set $to pool; if ($x) { set $to another; }", ()),
    ("set $to $x;", ()),
    ("", ("sync",)),
]


@pytest.mark.parametrize(("lines", "groups"), VARIABLES)
def test_pool_in_a_variable_is_found_by_the_group(look, lines, groups):
    found = look(
        site(
            f"hash $sync_routing_key consistent; {SERVERS}",
            location=f"{lines} location /x {{ {ASKS} proxy_pass http://$to$request_uri; }}",
            more=KEY + "map $endpoint_group $to { sync pool; other another; }",
        )
    )
    assert named(found) == {"pool": (groups, ())}
    assert bool(found.notes) is not bool(groups)


def test_maps_that_treat_users_differently_are_heeded(look):
    special = """
    map $user_identifier $key {
        ALICE   pinned;
        bob     $uri;
        ~^c     "c:$user_identifier";
        default "u_$user_identifier";
    }"""
    [pool] = look(site(f"hash $key consistent; {SERVERS}", more=special)).pools
    assert not pool.key.is_identifier
    assert [pool.key.of(user) for user in ("alice", "carol", "dave")] == [
        "pinned",
        "c:carol",
        "u_dave",
    ]
    with pytest.raises(Undecided):
        pool.key.of("bob")


def test_key_that_differs_between_groups_is_said_for_each(look):
    [one, two] = look(
        site(
            f"hash $key consistent; {SERVERS}",
            location=f"location / {{ {ASKS} proxy_pass http://$to; }}",
            more="map $endpoint_group $to { a pool; b pool; c pool; d pool; }"
            "map $endpoint_group $key { a a:$user_identifier; d $uri; default $user_identifier; }",
        )
    ).pools
    assert (one.groups, one.key.of("alice")) == (("a",), "a:alice")
    assert (two.groups, two.key.of("alice")) == (("b", "c"), "alice")


NO_ANSWER = [
    (f"upstream pool {{ {SERVERS} }}", "hash $sync_routing_key consistent;"),
    (f"upstream pool {{ hash $sync_routing_key; {SERVERS} }}", 'hashed without "consistent"'),
    (site(f"hash $user_identifier; {SERVERS}"), "Write in it: hash $user_identifier consistent;"),
    (
        site(SERVERS),
        "own.conf:1), so no server of it is a user's. To make it so, write in it: hash",
    ),
    (site(f"hash $user_identifier consistent; ip_hash; {SERVERS}"), "pool goes by ip_hash"),
    (site(f"hash $remote_addr consistent; {SERVERS}"), "$remote_addr ("),
    (site(f"hash $remote_addr consistent; {SERVERS}"), "depends on $remote_addr. Write in it"),
    (site(f"hash x$user_identifier$uri consistent; {SERVERS}"), "depends on $uri."),
    (site(f"hash 1 consistent; {SERVERS}"), "is 1. Write in it"),
    (site(SERVERS, location="location / { }"), "never asks whoami-router"),
    (site(SERVERS, location=f"location / {{ {ASKS} }}"), "No upstream of"),
    ("http { server { } }", "has no upstream"),
    ("server { }", "has no upstream"),
    (f"upstream a {{ {SERVERS} }} upstream a {{ }}", "two upstreams a"),
    ("upstream a { hash $sync_routing_key consistent; }", "no server, and nginx refuses"),
    (
        "upstream a { server b backup; hash $sync_routing_key consistent; }",
        "no server, and nginx refuses",
    ),
    (
        f"upstream a {{ hash $sync_routing_key consistent; {SERVERS} server c backup; }}",
        "nginx refuses backup after a hash line",
    ),
    ("upstream a { hash $sync_routing_key consistent; server b server c; }", "is a ; missing?"),
    ("upstream a { hash $sync_routing_key consistent; server; }", "needs host:port"),
    ("upstream a { hash $sync_routing_key consistent; server b weight=0; }", "weight of 1 or more"),
    ("upstream a { hash $sync_routing_key consistent; server b weight=20000; }", "20,000 in all"),
    (
        "upstream a { hash $sync_routing_key consistent; zone z 1m; server b resolve service=c; }",
        "service=c",
    ),
]


@pytest.mark.parametrize(("text", "reason"), NO_ANSWER)
def test_where_there_is_no_answer_the_reason_and_the_remedy_are_named(look, text, reason):
    with pytest.raises(NoAnswer) as none:
        look(text)
    assert reason in str(none.value)
    assert "\n" not in str(none.value)


def test_pool_that_asks_and_is_not_hashed_by_user_is_noted_beside_the_others(look):
    found = look(
        f"{KEY} upstream good {{ hash $sync_routing_key consistent; {SERVERS} }}"
        f"upstream bad {{ hash $sync_routing_key; {SERVERS} }} upstream plain {{ {SERVERS} }}"
        f"upstream forgotten {{ {SERVERS} }} server {{ {ASKS}"
        "location /a { proxy_pass http://good; } location /b { proxy_pass http://forgotten; } }"
    )
    assert named(found) == {"good": ((), ("location /a",))}
    bad, forgotten = found.notes
    assert bad.startswith("bad is hashed without")
    assert forgotten.startswith("forgotten has no hash line")


UNREADABLE = [
    ("server b weight=0;", "weight of 1 or more"),
    ("server b weight=20000;", "20,000 in all"),
    ("server b oops;", "no parameter oops"),
    ("server;", "needs host:port"),
    ("server b; server c backup;", "refuses backup"),
    ("", "has no server"),
]


@pytest.mark.parametrize(("lines", "reason"), UNREADABLE)
def test_pool_that_cannot_be_read_is_noted_beside_the_others(look, lines, reason):
    found = look(
        f"{KEY} upstream good {{ hash $sync_routing_key consistent; {SERVERS} }}"
        f"upstream bad {{ hash $sync_routing_key consistent; {lines} }} server {{ {ASKS}"
        "location /a { proxy_pass http://good; } location /b { proxy_pass http://bad; } }"
    )
    assert named(found) == {"good": ((), ("location /a",))}
    [note] = found.notes
    assert reason in note
    assert "own.conf:" in note


ONLY = [
    (["synapse_initial_sync"], ["synapse_initial_sync"], []),
    (
        ["synapse_push_rules", "synapse_sync", "synapse_rooms"],
        ["synapse_sync", "synapse_push_rules"],
        ["synapse_rooms is not hashed by the user for rooms"],
    ),
]


@pytest.mark.parametrize(("only", "pools", "notes"), ONLY)
def test_only_the_pools_that_are_wanted_are_named(only, pools, notes):
    found = survey(load(SHIPPED / "nginx.conf"), only)
    assert [pool.name for pool in found.pools] == pools
    assert [note[: len(start)] for note, start in zip(found.notes, notes, strict=True)] == notes


NOT_BY_USER = [
    ("synapse_main", "has no hash line"),
    ("synapse_rooms", "depends on $uri"),
    ("synapse_client_reader", "is empty"),
    ("synapse_device_lists", "depends on $http_authorization"),
    ("whoami_router", "depends on $http_authorization"),
    ("nobodys", "has no upstream nobodys, but whoami_router, synapse_main,"),
]


@pytest.mark.parametrize(("name", "reason"), NOT_BY_USER)
def test_of_a_pool_that_does_not_go_by_user_it_says_how_it_goes(name, reason):
    with pytest.raises(NoAnswer, match=re.escape(reason)):
        survey(load(SHIPPED / "nginx.conf"), [name])


LINES = [
    ("a", Server("a")),
    ("a:1 weight=07", Server("a:1", 7)),
    ("unix:/a down", Server("unix:/a", down=True)),
    ("a drain", Server("a", down=True)),
    ("a backup max_fails=0 fail_timeout=3s max_conns=4", Server("a", backup=True)),
    ("a resolve slow_start=3s route=x", Server("a")),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_line_of_a_server_is_read(line, expected):
    assert server(line.split()) == expected


BAD_LINES = [
    "",
    "a weight",
    "a weight=",
    "a weight=-1",
    "a weight=1.5",
    "a b",
    "a WEIGHT=2",
    "a down=1",
    "a;",
    "a weight=2;",
    'a "b"',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_line_that_nginx_would_refuse_is_refused(line):
    with pytest.raises(ValueError, match=r"needs|no parameter"):
        server(line.split())
