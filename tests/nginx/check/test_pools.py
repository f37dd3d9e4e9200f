"""What is found about where requests go that are asked about."""

import re

import pytest

from tests.nginx.check.edits import (
    EARLY,
    MAPS,
    PROXY,
    ROUTE,
    ROUTES,
    SECOND,
    SERVER,
    UPSTREAMS,
    changed,
)
from tests.nginx.check.own import OWN
from whoami_router.check.findings import WRONG


def two(port, other):
    return f"    server 127.0.0.1:{port} max_fails=0;\n", (
        f"    server 127.0.0.1:{port};\n    server 127.0.0.1:{other};\n"
    )


SYNCS_KEPT = "127.0.0.1:8084 max_fails=0;\n    keepalive 32;\n    keepalive_timeout 30s;"

CHANGES = [
    # What is known of the user.
    (
        [(ROUTE, "$upstream_http_x_user_identifier;", "$upstream_http_x_user;")],
        "wrong",
        "nothing is taken",
        ROUTE,
    ),
    (
        [(ROUTE, "$upstream_http_x_user_identifier;", "$http_x_user_identifier;")],
        "wrong",
        "client's own",
        ROUTE,
    ),
    # Where it goes.
    ([(UPSTREAMS, SECOND, "    hash $http_x_user_identifier;  #")], "wrong", "client", UPSTREAMS),
    (
        [(UPSTREAMS, SECOND, "    hash $upstream_http_x_user_identifier;  #")],
        "wrong",
        "empty",
        None,
    ),
    ([(UPSTREAMS, SECOND, "    hash $token_routing_key consistent;  #")], "wrong", "device", None),
    ([(UPSTREAMS, SECOND, "    hash $remote_addr consistent;  #")], "wrong", "not depend", None),
    ([(UPSTREAMS, SECOND, "    ip_hash;  #")], "wrong", "not hashed", UPSTREAMS),
    ([(UPSTREAMS, SECOND, "    hash $routing_key;  #")], "wrong", "nearly all", UPSTREAMS),
    ([(UPSTREAMS, SECOND, f"{SECOND[:-6]} least_conn; #")], "wrong", "not hashed", UPSTREAMS),
    ([(UPSTREAMS, "synapse_media;", "synapse_medai;")], "wrong", "no upstream synapse_medai", None),
    (
        [(UPSTREAMS, "    server 127.0.0.1:8084 max_fails=0;\n", "")],
        "note",
        "one server only",
        None,
    ),
    ([(ROUTES, "    sync              1;\n", "")], "wrong", "without their user", SERVER),
    ([(UPSTREAMS, *two(8106, 1)), (ROUTES, "    pagination  ", "#")], "wrong", "room", UPSTREAMS),
    (
        [(UPSTREAMS, *two(8108, 1)), (ROUTES, "    federation_inbound $", "#")],
        "note",
        "transactions",
        UPSTREAMS,
    ),
    # Too early.
    (
        EARLY,
        "wrong",
        "before whoami-router is asked",
        MAPS,
    ),
    # How it is passed on.
    (
        [(PROXY, 'proxy_set_header X-User-Identifier        "";', "")],
        "note",
        "reach Synapse: X-User-Identifier",
        PROXY,
    ),
    ([(UPSTREAMS, SYNCS_KEPT, SYNCS_KEPT.replace("30s", "60s"))], "note", "POST", UPSTREAMS),
]


@changed(CHANGES)
def test_change_is_found_and_nothing_else(finds_only, edits, status, words, file):
    finds_only(edits, status, words, file)


@pytest.mark.parametrize(
    "computed",
    [
        "js_set $key njs.key;",
        "perl_set $key own::key;",
        'split_clients "$user" $key { * a; }',
        "map $user $key { hostnames; default a; }",
        "map $user $key { ~(*SKIP)b c; }",
    ],
)
def test_key_that_is_computed_elsewhere_is_not_guessed(found_in, tmp_path, computed):
    own_map = re.search(r"    map .*\n", OWN)[0]
    findings = found_in(tmp_path, OWN.replace(own_map, f"{computed}\n"), files={})
    assert [one for one in findings if one.status == WRONG] == []
    assert any("cannot be told" in one.what for one in findings)


def test_requests_that_other_directives_pass_on_are_not_guessed(found_in, tmp_path):
    other = OWN.replace("proxy_pass http://workers;", "try_files $uri @workers;")
    findings = found_in(tmp_path, other, files={})
    assert [one for one in findings if one.status == WRONG] == []
    assert any("no proxy_pass beside" in one.what for one in findings)
