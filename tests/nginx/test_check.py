"""What ``whoami-router check`` finds in nginx's files: nothing in ours, and each trap in others."""

import grp
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import Response

from tests.fake_synapse import served
from tests.nginx.conftest import USERS, FakeRouter
from tests.nginx.edge import TRUSTED_PROXY
from tests.nginx.test_migration import OURS, before
from tests.nginx.test_readme import documented_configuration
from tests.nginx.test_traps import (
    SLIDING,
    SYNC,
    TRAPS,
    Setting,
    deletions,
    each_user_keeps_its_worker,
    no_answer_of_the_router_costs_a_sync,
    posts_and_gets_alternate_without_one_failure,
    router_is_asked_over_one_connection,
)
from tests.stack.nginx import ACCESS_LOG, DEBUG_HEADERS, EDGE_CACHE, SHIPPED, SINGLE_SIGN_ON
from tests.stack.router import Router
from whoami_router.check.findings import NOTE, OK, WRONG
from whoami_router.check.nginx import look
from whoami_router.check.nginx.reached import User, closed_to
from whoami_router.settings import Inherited, Tcp, Unix, parse_listen

ROOT = SHIPPED.parent
LISTEN = "127.0.0.1:9009"

ROUTER = "snippets/whoami_router.conf"
ROUTE = "snippets/route_by_user.conf"
PROXY = "snippets/proxy.conf"
CACHE = "snippets/edge_cache.conf"
LOG = "snippets/access_log.conf"
ZONE = "conf.d/edge_cache.conf"
MAPS = "conf.d/maps.conf"
ROUTES = "conf.d/routes.conf"
UPSTREAMS = "conf.d/upstreams.conf"
SERVER = "conf.d/synapse.conf"
CLIENTS = "conf.d/clients.conf"


@pytest.fixture(scope="module")
def asked():
    """Return the address of what answers as whoami-router does."""
    answer = Response(status_code=204, headers={"X-User-Identifier-Source": "none"})
    with served(FakeRouter(answer)) as address:
        yield address


@pytest.fixture
def shipped(tmp_path, asked):
    """Return a copy of the shipped files that has the router where one is."""
    files = shutil.copytree(SHIPPED, tmp_path / "shipped")
    upstreams = files / UPSTREAMS
    upstreams.write_text(upstreams.read_text().replace(LISTEN, asked))
    return files


@pytest.fixture
def found(tmp_path, asked):
    """Return a function: what is found in the shipped files with edits, but for what is right.

    The router that they name is moved to ``at`` where one is.
    """

    def found(*edits, listen=None, whoami_timeout=2.0, at=asked):
        files = shutil.copytree(SHIPPED, tmp_path / "nginx", dirs_exist_ok=True)
        for file, old, new in edits:
            text = (files / file).read_text()
            assert old in text, (file, old)
            (files / file).write_text(text.replace(old, new))
        for file in (UPSTREAMS, ROUTER):
            (files / file).write_text((files / file).read_text().replace(LISTEN, at))
        listen = listen or parse_listen(at)
        findings = look(files / "nginx.conf", whoami_timeout=whoami_timeout, listen=listen)
        return [one for one in findings if one.status != OK]

    return found


def only(findings):
    """Return the one thing that is wrong, or else the one that is noted."""
    [finding] = [one for one in findings if one.status == WRONG] or findings
    return finding


# Nothing in ours.


@pytest.mark.parametrize(
    "edits",
    [
        [],
        [ACCESS_LOG, EDGE_CACHE, DEBUG_HEADERS, TRUSTED_PROXY, SINGLE_SIGN_ON],
        [(LOG, "\naccess_log off;", "\naccess_log /dev/stdout routing_json;")],
    ],
    ids=["as shipped", "with everything else switched on", "logged as JSON"],
)
def test_nothing_is_found_in_the_shipped_files(found, edits):
    assert found(*edits) == []


def test_what_is_right_is_said(shipped):
    said = [one.what for one in look(shipped / "nginx.conf", whoami_timeout=2, listen=None)]
    assert any("is asked, and fails open" in what for what in said)
    assert any("synapse_sync (2 servers)" in what for what in said)
    assert any("no log shows" in what for what in said)


def test_nothing_is_wrong_with_the_files_of_compose(tmp_path):
    files = shutil.copytree(SHIPPED, tmp_path / "nginx")
    for file in (UPSTREAMS, LOG):
        shutil.copy(ROOT / "deploy/compose" / Path(file).name, files / file)
    findings = look(
        files / "nginx.conf", whoami_timeout=2, listen=Unix(Path("/sockets/router.sock"))
    )
    in_container, one_server = [one for one in findings if one.status != OK]
    assert in_container.status == NOTE
    assert "unix:/sockets/router.sock cannot be told from here" in in_container.what
    assert one_server.what == "one server only, nothing to choose: synapse_initial_sync"


def written(directory, http, *, main="", files=OURS):
    """Write a configuration of one's own; return its path."""
    for file, text in files.items():
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text(text)
    path = directory / "nginx.conf"
    path.write_text(
        f"{main}\nevents {{}}\nhttp {{\naccess_log off;\ninclude conf.d/*.conf;\n{http}}}"
    )
    return path


@pytest.fixture(scope="module")
def found_in(asked):
    """Return a function: what is found in a configuration whose router is where one is."""

    def found_in(directory, http, **more):
        for address in (LISTEN, OWN_ROUTER):
            http = http.replace(f"server {address};", f"server {asked};")
        path = written(directory, http, **more)
        findings = look(path, whoami_timeout=2.0, listen=parse_listen(asked))
        return [one for one in findings if one.status != OK]

    return found_in


OWN_ROUTER = "unix:/run/whoami-router/sock"


README = documented_configuration({})
README_FILES = OURS | {
    file: (SHIPPED / file).read_text() for file in ("snippets/debug_headers.conf", CACHE, ZONE)
}


def test_nothing_is_wrong_with_the_lines_of_the_readme(found_in, tmp_path):
    findings = found_in(tmp_path, README, files=README_FILES)
    assert [one for one in findings if one.status == WRONG] == []
    assert all(one.remedy for one in findings)


def test_nothing_is_wrong_with_the_edge_cache_of_the_readme(found_in, tmp_path):
    file, old, new = EDGE_CACHE
    files = README_FILES | {file: README_FILES[file].replace(old, new)}
    good = found_in(tmp_path, README, files=files, main="worker_rlimit_nofile 20000;")
    assert [one for one in good if one.status == WRONG] == []
    without = only(found_in(tmp_path, README, files=files))
    assert without.remedy.startswith("worker_rlimit_nofile 16512")


def test_unrelated_servers_are_none_of_its_business(found_in, tmp_path):
    unrelated = """
        upstream blog { server 127.0.0.1:1; server 127.0.0.1:2; }
        map $host $site { default nowhere; }
        server {
            access_log /var/log/blog.log;
            location / { auth_request /sso; proxy_pass http://blog; }
            location = /sso { proxy_pass http://127.0.0.1:4180/oauth2/auth; }
            location /other { proxy_pass http://$site; }
        }
    """
    (tmp_path / "alone").mkdir()
    (tmp_path / "both").mkdir()
    alone = found_in(tmp_path / "alone", README, files=README_FILES)
    both = found_in(tmp_path / "both", unrelated + README, files=README_FILES)
    assert [one.what for one in both] == [one.what for one in alone]


# Each trap.

# What a trap's test sees, and a configuration does not show.
NOT_SHOWN = {
    (UPSTREAMS, "    hash $token_routing_key"): "one router only; see CHANGES for two",
    (CACHE, "proxy_buffering on;"): "it is nginx's default; see CHANGES for one that is off",
    (ROUTES, "    pagination "): "one worker only; see CHANGES for two",
    (ROUTES, "    federation_inbound "): "one worker only; see CHANGES for two",
    (CLIENTS, '    "~*/(\\.|%2e)'): "what has dots is private by the line below it, too",
    (CLIENTS, '    ""      0;'): "too much is closed, and the administrator sees it",
    ("conf.d/log_format.conf", '    default    "$logged_path?(hidden)"'): "too little is logged",
}


@pytest.mark.parametrize(
    ("file", "start"),
    [trap[:2] for trap in TRAPS],
    ids=[f"{file}: {start.strip()}" for file, start, _ in TRAPS],
)
def test_each_trap_is_found(found, file, start):
    """Add a trap that a configuration does not show to NOT_SHOWN, with the reason."""
    findings = found(ACCESS_LOG, EDGE_CACHE, *deletions(file, start))
    assert bool(findings) == ((file, start) not in NOT_SHOWN)
    assert all(one.remedy for one in findings if one.status == WRONG)


def two(port, other):
    return f"    server 127.0.0.1:{port} max_fails=0;\n", (
        f"    server 127.0.0.1:{port};\n    server 127.0.0.1:{other};\n"
    )


TWO_ROUTERS = (
    UPSTREAMS,
    "    server 127.0.0.1:9009;\n",
    "    server 127.0.0.1:9009;\n    server 127.0.0.1:9009 max_fails=0;\n",
)
HASH = "    hash $token_routing_key consistent;"
SECOND = "    hash $routing_key consistent;  # (!)"

LISTEN_LINE = f"server {LISTEN};"
SATISFY_ANY = (
    "    location @by_user {\n",
    "    location @by_user {\n        satisfy any;\n        allow all;\n",
)
# Beside the location that asks, another one that does not.
ANOTHER = """
    location WHERE {
        include snippets/proxy.conf;
        proxy_pass http://synapse_sync;
    }
    location @by_user {
"""


def another(where):
    return [(SERVER, "    location @by_user {\n", ANOTHER.replace("WHERE", where))]


KEPT_FIRST = [
    (UPSTREAMS, "    keepalive 32;\n    keepalive_timeout 60s;", "    keepalive_timeout 60s;"),
    (UPSTREAMS, f"{HASH}  # (!)", f"    keepalive 32;\n{HASH}  #"),
]
EARLY = [
    (MAPS, "map $user_id", "limit_req_zone $sync_routing_key zone=u:1m rate=99r/s;\nmap $user_id"),
    (SERVER, "    location / {", "    limit_req zone=u burst=99;\n    location / {"),
]
SYNCS_KEPT = "127.0.0.1:8084 max_fails=0;\n    keepalive 32;\n    keepalive_timeout 30s;"

# Changes to the shipped files, and the one thing that is found: its status, words in what is said,
# in the remedy, and the file that it is in.
CHANGES = [
    # Whom nginx asks.
    ([(ROUTER, "whoami_router/resolve;", "whoami_router/;")], "wrong", "/resolve only", ROUTER),
    ([(ROUTER, "http://whoami_router/", "https://whoami_router/")], "wrong", "no TLS", ROUTER),
    ([(ROUTER, "http://whoami_router/", f"http://{LISTEN}/")], "wrong", "upstream", ROUTER),
    (
        [(UPSTREAMS, "server 127.0.0.1:9009;", "server 127.0.0.1:9;")],
        "wrong",
        "nobody listens",
        None,
    ),
    ([(ROUTE, "auth_request /_whoami", "auth_request /_who")], "wrong", "no location", ROUTE),
    ([(UPSTREAMS, "server 127.0.0.1:9009;", "server 127.0.0.1:9 down;")], "note", "above", ROUTER),
    (
        [(UPSTREAMS, LISTEN_LINE, f"{LISTEN_LINE}\n    server 127.0.0.1:9;")],
        "wrong",
        "127.0.0.1:9: nobody listens there: one process less",
        UPSTREAMS,
    ),
    (
        [(UPSTREAMS, LISTEN_LINE, "server unix:/run/whoami-router-none/sock;")],
        "wrong",
        "there is no such socket: every request goes by its token",
        UPSTREAMS,
    ),
    ([(SERVER, *SATISFY_ANY)], "wrong", "asks nobody", SERVER),
    # What it is told.
    ([(ROUTER, "$http_authorization;", '"";')], "wrong", "Authorization", ROUTER),
    ([(ROUTER, "URI  $request_uri;", "URI $uri$is_args$args;")], "wrong", "query", ROUTER),
    ([(ROUTER, 'Content-Length "";', "Content-Length 0;")], "wrong", "POST", ROUTER),
    (
        [(ROUTER, "X-Forwarded-For $remote_addr;", "X-Forwarded-For $proxy_add_x_forwarded_for;")],
        "note",
        "chooses",
        ROUTER,
    ),
    (
        [(ROUTER, "User-Agent      $http_user_agent;", "User-Agent nginx;")],
        "wrong",
        "User-",
        ROUTER,
    ),
    # How.
    ([(ROUTER, "proxy_http_version 1.1;", "proxy_http_version 1.0;")], "wrong", "of its", ROUTER),
    ([(ROUTER, 'Connection "";', "Connection close;")], "wrong", "of its own", ROUTER),
    (
        KEPT_FIRST,
        "wrong",
        "without effect",
        UPSTREAMS,
    ),
    ([(UPSTREAMS, "keepalive_timeout 60s;", "keepalive_timeout 80s;")], "wrong", "75 s", UPSTREAMS),
    ([TWO_ROUTERS, (UPSTREAMS, HASH, "")], "wrong", "every token", UPSTREAMS),
    ([TWO_ROUTERS, (UPSTREAMS, HASH, "    hash $remote_addr;")], "wrong", "every", UPSTREAMS),
    ([TWO_ROUTERS, (UPSTREAMS, HASH, "    hash $request_uri;")], "wrong", "every", UPSTREAMS),
    ([TWO_ROUTERS, (UPSTREAMS, HASH, f"{HASH[:-12]};")], "note", "another one", UPSTREAMS),
    # What happens without an answer.
    ([(ROUTER, "400 401 402", "400 402")], "wrong", "for 401", ROUTER),
    ([(ROUTER, "500 501 502 503 504", "500 501")], "wrong", "502, 503, 504", ROUTER),
    ([(ROUTER, "599 = @", "599 @")], "wrong", "without `=`", ROUTER),
    ([(ROUTER, "return 204;", "return 502;")], "wrong", "does not answer 204", ROUTER),
    ([(ROUTER, "406 407", "406 407 408")], "note", "408", ROUTER),
    ([(ROUTER, "proxy_read_timeout    3s;", "proxy_read_timeout 2s;")], "wrong", "late", ROUTER),
    (
        [(ROUTER, "proxy_connect_timeout 1s;", "proxy_connect_timeout 60s;")],
        "wrong",
        "60 s",
        ROUTER,
    ),
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
    # Where nobody is asked.
    (another("= /_matrix/client/v3/sync"), "wrong", "go to synapse_sync without", SERVER),
    (another("= /_matrix/client/r0/sync"), "wrong", "goes to synapse_sync without its", SERVER),
    (another("~ simplified_msc3575/sync$"), "wrong", "a sliding sync (POST", SERVER),
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
    # Logs.
    ([ACCESS_LOG, (LOG, " routing;", ";")], "wrong", "access tokens in queries", LOG),
    ([ACCESS_LOG, (LOG, " routing;", " combined;")], "wrong", "in queries", LOG),
    (
        [ACCESS_LOG, ("conf.d/log_format.conf", "$remote_addr [", "$http_authorization [")],
        "wrong",
        "every access token",
        LOG,
    ),
    ([ACCESS_LOG, ("conf.d/log_format.conf", '$logged_uri"', '$args"')], "wrong", "queries", LOG),
    ([(LOG, "error_log stderr emerg;", "error_log stderr crit;")], "note", "level crit", LOG),
    # The edge cache.
    ([EDGE_CACHE, (CACHE, "$http_auth", "$cookie_auth")], "wrong", "users share one", CACHE),
    (
        [EDGE_CACHE, (CACHE, '"$edge_cache_query $', '"$arg_access_token $')],
        "wrong",
        "in the query share",
        CACHE,
    ),
    ([EDGE_CACHE, (CACHE, "max=12000", "max=19000")], "wrong", "descriptors", CACHE),
    ([EDGE_CACHE, (CACHE, "lock_timeout 10ms;", "lock_timeout 5s;")], "wrong", "half a", CACHE),
    ([EDGE_CACHE, (CACHE, "proxy_buffering on;", "proxy_buffering off;")], "wrong", "buff", None),
    (
        [
            EDGE_CACHE,
            (CACHE, "proxy_cache w", "proxy_ignore_headers X-Accel-Expires;\nproxy_cache w"),
        ],
        "wrong",
        "fallbacks are repeated",
        CACHE,
    ),
    (
        [EDGE_CACHE, (CACHE, "proxy_cache whoami_router;", "proxy_cache w;")],
        "wrong",
        "zone w",
        None,
    ),
    ([EDGE_CACHE, (ZONE, "/dev/shm/whoami_router", "/proc/x")], "wrong", "disk", ZONE),
    ([EDGE_CACHE, (ZONE, "/dev/shm/whoami_router", "/missing/x")], "note", "in memory", ZONE),
    # Whom it lets in.
    ([(CLIENTS, "map $request_path $public", "map $uri $public")], "wrong", "metrics", SERVER),
    (
        [(CLIENTS, "    default 1;\n", "    default 0;\n")],
        "note",
        "local clients of everybody",
        SERVER,
    ),
]


@pytest.mark.parametrize(
    ("edits", "status", "words", "file"),
    CHANGES,
    ids=[
        f"{edits[-1][0]}: {edits[-1][2].strip() or edits[-1][1].strip()}" for edits, *_ in CHANGES
    ],
)
def test_change_is_found_and_nothing_else(found, edits, status, words, file):
    finding = only(found(*edits))
    assert (finding.status, words in finding.what) == (status, True), finding
    assert file is None or file in finding.place
    assert re.search(r":[0-9]+$", finding.place) if finding.place else status == "note"
    assert finding.remedy or status == "note"


# What is found and is no deleted line, and the promise of test_traps.py that it breaks.
BROKEN = [
    (
        KEPT_FIRST,
        router_is_asked_over_one_connection,
    ),
    ([(ROUTER, "599 = @", "599 @")], no_answer_of_the_router_costs_a_sync),
    (
        [(ROUTER, 'Content-Length "";', "Content-Length $content_length;")],
        posts_and_gets_alternate_without_one_failure,
    ),
    (
        [(UPSTREAMS, SECOND, "    hash $upstream_http_x_user_identifier consistent;  #")],
        each_user_keeps_its_worker(SYNC),
    ),
    (EARLY, each_user_keeps_its_worker(SYNC)),
    ([(SERVER, *SATISFY_ANY)], each_user_keeps_its_worker(SYNC)),
    (another("= /_matrix/client/v3/sync"), each_user_keeps_its_worker(SYNC)),
    (another("~ simplified_msc3575/sync$"), each_user_keeps_its_worker(SLIDING)),
]


@pytest.mark.parametrize(
    ("edits", "promise"), BROKEN, ids=[edits[-1][2].strip() for edits, _ in BROKEN]
)
def test_what_is_wrong_breaks_a_promise_under_a_real_nginx(
    found, make_site, pools, fake_router, dead_address, hung_address, edits, promise
):
    assert any(one.status == WRONG for one in found(*edits))
    setting = Setting(make_site, edits, pools, fake_router, dead_address, hung_address)
    with pytest.raises(AssertionError):
        promise(setting)


def test_findings_name_the_line(found):
    finding = only(found((ROUTER, "X-Original-URI  $request_uri", "X-Original-URI $uri")))
    file, line = finding.place.rsplit(":", 1)
    assert "X-Original-URI $uri" in Path(file).read_text().splitlines()[int(line) - 1]


# Configurations of one's own.


OWN = """
    upstream router { server unix:/run/whoami-router/sock; keepalive 8; }
    upstream workers { hash $key consistent; server 10.0.0.1:8083; server 10.0.0.2:8083; }
    map $user $key { "" $http_authorization$arg_access_token; default $user; }
    server {
        listen 8448;
        error_log /dev/null emerg;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-User-Identifier "";
        proxy_set_header X-User-Identifier-Source "";
        location = /who {
            internal;
            proxy_pass http://router/resolve;
            proxy_pass_request_headers off;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_set_header Authorization $http_authorization;
            proxy_set_header X-Original-URI $scheme://$host$request_uri;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header User-Agent $http_user_agent;
            proxy_connect_timeout 1s;
            proxy_read_timeout 2500ms;
            proxy_intercept_errors on;
            error_page 400 401 403 404 429 500 502 503 504 =204 /nobody;
        }
        location = /nobody { internal; return 204; }
        location ~ ^/_matrix/client/(?<version>r0|v3)/sync$ {
            auth_request /who;
            auth_request_set $user $upstream_http_x_user_identifier;
            proxy_next_upstream_timeout 20s;
            proxy_pass http://workers;
        }
        location /_matrix/ { proxy_pass http://127.0.0.1:8008; }
    }
"""


def test_complete_configuration_of_ones_own_is_right(found_in, tmp_path):
    assert found_in(tmp_path, OWN, files={}) == []


HEADERS = OWN[
    OWN.index("            proxy_set_header Connection") : OWN.index("            proxy_connect")
]

IDENTIFIERS = """\
        proxy_set_header X-User-Identifier "";
        proxy_set_header X-User-Identifier-Source "";
"""

# Names and addresses that are nobody's here.
UNTOLD = "cannot be told from here"

# Changes to it, and what is found, the first first.
OWN_CHANGES = [
    # One proxy_set_header drops all that would be inherited.
    (
        HEADERS,
        'proxy_set_header Content-Length "";',
        ["Authorization", "in the query", "Synapse rec"],
    ),
    (
        "proxy_next_upstream_timeout 20s;",
        'proxy_set_header A "";',
        ["own headers", "who the client"],
    ),
    ("internal;\n            proxy_pass", "proxy_pass", ["any client"]),
    ("server unix:/run/whoami-router/sock;", "server a:1; server b:1;", ["every token"]),
    ("http://router/resolve", "http://10.0.0.3:9009/resolve", ["no upstream block"]),
    ("hash $key", "hash $user", ["for all, or empty"]),
    ("hash $key consistent", "hash $http_x_user_identifier", ["client's own header"]),
    ("hash $key consistent", "hash $sent_http_x_user_identifier", ["is empty here"]),
    ("hash $key consistent;", "", ["workers is not hashed"]),
    ("$http_authorization$arg_access_token", "$remote_addr", []),
    ("hash $key consistent; server 10.0.0.1:8083;", "", ["one server only"]),
    ("$arg_access_token", "", ["with a token in the query do not keep"]),
    ("$http_authorization$arg", "$arg", ["with a token in the header do not keep"]),
    ("http://workers", "http://10.0.0.1:8083", ["no upstream block"]),
    ("auth_request /who;", "auth_request /whom;", ["no location /whom"]),
    ("auth_request /who;", "", ["nobody is asked for it", "no location asks"]),
    ("$user $upstream_http_x_user_identifier", "$user $upstream_http_x_user", ["nothing is taken"]),
    ("=204 /nobody", "/nobody", ["without `=`"]),
    ("=204 /nobody", "= /nobody", ["cannot be told"]),
    ("=204 /nobody", "= @nobody", ["does not answer 204"]),
    ("proxy_read_timeout 2500ms;", "", ["for 60 s"]),
    ("proxy_read_timeout 2500ms;", "proxy_read_timeout 1500ms;", ["too late"]),
    ("location /_matrix/ {", "location /_matrix/x {", []),
    (
        "proxy_next_upstream_timeout 20s;",
        "if ($key) { set $a b; }",
        ["before whoami-router is asked", "started again"],
    ),
    ("^/_matrix/client/(?<version>r0|v3)/sync$", "^/sync$", ["goes to 127.0.0.1:8008 without"]),
    ("listen 8448;", "set $early $key;", ["before whoami-router is asked"]),
    ("proxy_pass http://router/resolve;", "set $a router; proxy_pass http://$a/resolve;", []),
    ("proxy_pass http://workers;", "set $b http://workers; proxy_pass $b;", []),
    ("proxy_pass http://router/resolve;", "proxy_pass http://$unknown/resolve;", ["cannot be t"]),
    ("proxy_pass http://workers;", "proxy_pass http://$unknown;", ["cannot be t"]),
    ("location /_matrix/ {", "location / {", ["everyone reaches Synapse's administration"]),
    ("location /_matrix/ {", "location / { allow 10.0.0.0/8; deny all;", []),
    (IDENTIFIERS, "proxy_pass_request_headers off;", []),
    ("error_log /dev/null emerg;", "", ["at level error"]),
    ("listen 8448;", "access_log /a.log;", ["shows access tokens in queries"]),
    ("listen 8448;", "access_log /a.log combined if=$loggable;", ["in queries"]),
    ("upstream router", "log_format a $uri; access_log /b a; upstream router", ["by mistake"]),
    ("upstream router", "log_format a $host; access_log /b a; upstream router", []),
]


@pytest.mark.parametrize(
    ("old", "new", "words"), OWN_CHANGES, ids=[new or old for old, new, _ in OWN_CHANGES]
)
def test_what_is_half_done_is_found(found_in, tmp_path, old, new, words):
    assert old in OWN
    findings = found_in(tmp_path, OWN.replace(old, new, 1), files={})
    said = [one.what for one in findings if "looked at" not in one.what and UNTOLD not in one.what]
    for word in words:
        assert any(word in what for what in said), said
    if not words:
        assert said == []
    assert all(one.remedy for one in findings if one.status == WRONG)


# A second server, and other locations, that pass requests to the workers of OWN.
TWO = "server a; server b;"
SSO = "location = /sso { proxy_pass http://127.0.0.1:4180; }"
ROOMS = "location / { proxy_pass http://rooms; }"
NOT_ASKED = [
    ("server { listen 8449; location / { proxy_pass http://workers; } }", WRONG),
    ("server { location /_matrix/client/r0/sync { proxy_pass http://workers; } }", WRONG),
    ("server { location ~ /sync$ { set $to workers; proxy_pass http://$to; } }", WRONG),
    (
        f"server {{ {SSO} location / {{ auth_request /sso; proxy_pass http://workers; }} }}",
        WRONG,
    ),
    ("server { location /_matrix/client/v3/keys/ { proxy_pass http://workers; } }", NOTE),
    ("server { location ~ ^/_matrix/client/versions$ { proxy_pass http://workers; } }", NOTE),
    ("server { location / { return 301 https://$host$request_uri; } }", None),
    (
        "upstream one { hash $key; server a; } server { location / { proxy_pass http://one; } }",
        None,
    ),
    (
        f"upstream rooms {{ hash $uri; {TWO} }} server {{ {ROOMS} }}",
        None,
    ),
]


@pytest.mark.parametrize(("more", "status"), NOT_ASKED, ids=[more for more, _ in NOT_ASKED])
def test_pool_of_the_users_is_reached_from_nowhere_without_them(found_in, tmp_path, more, status):
    said = found_in(tmp_path, OWN + more, files={})
    assert [one.status for one in said] == ([] if status is None else [status])
    for one in said:
        assert "without its user" in one.what
        assert one.remedy
        assert one.place


@pytest.mark.parametrize(
    ("pool", "status"), [("workers", WRONG), ("others", NOTE), ("127.0.0.1:8008", None)]
)
def test_sliding_sync_without_its_user_is_wrong_in_the_pool_of_syncs(
    found_in, tmp_path, pool, status
):
    others = "upstream others { server a; server b; }"
    own = OWN.replace("http://127.0.0.1:8008", f"http://{pool}")
    findings = found_in(tmp_path, others + own, files={})
    said = [one for one in findings if "without its user" in one.what]
    assert [one.status for one in said] == ([] if status is None else [status])
    assert all("a sliding sync (POST" in one.what for one in said)


@pytest.mark.parametrize("where", ["http", "server", "location"])
def test_satisfy_any_is_wrong_where_it_counts_and_somebody_is_asked(found_in, tmp_path, where):
    opening = {
        "http": "upstream router",
        "server": "listen 8448;",
        "location": "auth_request /who;",
    }
    line = opening[where]
    finding = only(found_in(tmp_path, OWN.replace(line, f"satisfy any; {line}", 1), files={}))
    assert (finding.status, finding.remedy) == (WRONG, "satisfy all;")
    all_again = (
        f"satisfy any; {OWN.replace('auth_request /who;', 'satisfy all; auth_request /who;')}"
    )
    assert found_in(tmp_path, all_again, files={}) == []


# Whom nginx reaches.


AWAY = [
    ("127.0.0.1:9", WRONG, "nobody listens there"),
    ("unix:/run/none/sock", WRONG, "no such socket"),
    ("unix:/bin/sh", WRONG, "is a file, but no socket"),
    ("unix:/of-a-container/sock", NOTE, UNTOLD),
    ("nobody.invalid:9009", NOTE, UNTOLD),
]


@pytest.mark.parametrize(("address", "status", "words"), AWAY)
def test_address_where_no_router_answers_is_found(found, address, status, words):
    finding = only(found((UPSTREAMS, LISTEN, address), listen=Inherited(3)))
    assert finding.status == status
    assert words in finding.what
    assert finding.remedy


def test_remedy_for_an_address_where_nobody_listens_is_that_of_the_router(found, asked):
    finding = only(found((UPSTREAMS, LISTEN, "127.0.0.1:9")))
    assert f"server {asked};" in finding.remedy


def test_something_else_in_the_place_of_the_router_is_found(found):
    with served(FakeRouter()) as other:
        finding = only(found((UPSTREAMS, LISTEN, other), listen=parse_listen(other)))
    assert "which is no whoami-router: it answered 204" in finding.what


def test_router_that_hangs_is_found(found, hung_address):
    finding = only(found((UPSTREAMS, LISTEN, hung_address), listen=Inherited(3)))
    assert (finding.status, "did not answer within" in finding.what) == (WRONG, True)


@pytest.fixture
def socket_of_router(tmp_path_factory, pools):
    """Return the path of a socket, in a directory of its own, at which a router listens."""
    with TemporaryDirectory(prefix="wr-site-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "run").mkdir()
        path = directory / "run/sock"
        log = tmp_path_factory.mktemp("router")
        with Router(log, f"http://{pools['main'].address}", listen=f"unix:{path}"):
            yield path


NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="nginx has no other user")

WORKERS = "worker_processes auto;"

# The owner and mode of the socket and of its directory, the line for nginx's user, and who is let
# in, by the group or by anybody's right.
RIGHTS = [
    ("", None, 0o600, None, 0o755, "sock"),
    ("user www-data;", None, 0o600, None, 0o755, "sock"),
    ("user www-data;", "www-data", 0o640, None, 0o755, "sock"),
    ("user www-data;", None, 0o666, None, 0o700, "run"),
    ("user nobody www-data;", None, 0o660, "www-data", 0o750, "sock"),
    ("user nobody www-data;", "www-data", 0o660, "www-data", 0o750, None),
    ("user www-data;", "www-data", 0o660, "www-data", 0o750, None),
    ("", None, 0o666, None, 0o755, None),
    ("user root;", None, 0o000, None, 0o000, None),
]


@NEEDS_ROOT
@pytest.mark.parametrize(("user", "group", "mode", "above", "mode_above", "closed"), RIGHTS)
def test_socket_that_is_closed_to_nginx_is_found(
    found, make_site, socket_of_router, user, group, mode, above, mode_above, closed
):
    for path, name, bits in (
        (socket_of_router, group, mode),
        (socket_of_router.parent, above, mode_above),
    ):
        os.chown(path, 0, grp.getgrnam(name).gr_gid if name else 0)
        path.chmod(bits)
    line = ("nginx.conf", WORKERS, f"{user}\n{WORKERS}")
    address = f"unix:{socket_of_router}"
    findings = found(line, (UPSTREAMS, LISTEN, address), listen=parse_listen(address))
    site = make_site(line, DEBUG_HEADERS, router_address=address)
    named = site.get(SYNC, f"token-{USERS[0]}-0").headers.get("x-user-identifier")
    assert (named == USERS[0]) == (closed is None)
    if closed is None:
        assert findings == []
    else:
        finding = only(findings)
        assert f"/{closed} is closed" in finding.what
        assert finding.remedy


@pytest.fixture
def listening():
    """Return the path of a socket in a directory that is open to all."""
    with TemporaryDirectory(prefix="wr-site-") as name:
        Path(name).chmod(0o755)
        path = Path(name, "sock")
        with socket.create_server(str(path), family=socket.AF_UNIX):
            path.chmod(0o660)
            yield path


SOMEBODY = 12345


def user_of(path, *, owns, groups):
    owner = path.stat().st_uid
    return User("nginx", owner if owns else SOMEBODY, frozenset(groups))


def test_owner_has_the_rights_of_the_owner_and_of_nobody_else(listening):
    mine = user_of(listening, owns=True, groups=())
    assert closed_to(listening, mine) is None
    listening.chmod(0o066)
    mine = user_of(listening, owns=True, groups=[listening.stat().st_gid])
    assert closed_to(listening, mine) == listening


def test_rights_beside_the_mode_are_not_guessed(listening):
    """An access control list may let in whom the mode does not name."""
    other = user_of(listening, owns=False, groups=())
    assert closed_to(listening, other) == listening
    everybody = 2**32 - 1
    # Owner, this user, group, mask, others: tag, rights, user.
    entries = [(1, 6, everybody), (2, 6, SOMEBODY), (4, 0, everybody), (16, 6, everybody)]
    entries.append((32, 0, everybody))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(listening, "system.posix_acl_access", acl)
    except OSError as exc:
        pytest.skip(f"this file system has no such lists: {exc}")
    assert closed_to(listening, other) is None


BEFORE = {
    "a router in njs": (
        before(
            "server 127.0.0.1:1; server 127.0.0.1:2;",
            "$user",
            asks="auth_request /_route;auth_request_set $user $sent_http_x_user_identifier;",
            answers="location = /_route { internal; js_content njs.route; }",
        ),
        "asks no whoami-router",
    ),
    "a map of tokens": (
        'map $http_authorization $name { "~^Bearer syt_(?<encoded>.*?)_" $encoded; }'
        + before("server 127.0.0.1:1; server 127.0.0.1:2;", "$name"),
        "no location asks",
    ),
    "the snippet left out": (
        README.replace("include snippets/whoami_router.conf;", ""),
        "no location /_whoami_router/resolve",
    ),
    "nothing of it": ("server { location / { root /srv; } }", "no location asks"),
    "nothing at all": ("", "no location asks"),
}


@pytest.mark.parametrize(("http", "words"), BEFORE.values(), ids=BEFORE)
def test_configuration_that_asks_nobody_is_told_only_that(found_in, tmp_path, http, words):
    findings = found_in(tmp_path, http, files=README_FILES)
    assert words in only(findings).what


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, OWN.count("\n") - 1),
            st.sampled_from(
                ["", ";", "$x;", '"";', "a b;", "off;", "= 1;", "set $key $key;", "@a;"]
            ),
        ),
        max_size=4,
    )
)
def test_whatever_a_line_says_there_is_an_answer(found_in, tmp_path, changes):
    lines = OWN.splitlines()
    for number, end in changes:
        if lines[number].strip() and not set("{}") & set(lines[number]):
            lines[number] = f"{lines[number].split()[0]} {end}" if end else ""
    assert isinstance(found_in(tmp_path, "\n".join(lines), files={}), list)


@pytest.mark.parametrize(
    ("server", "listen", "same"),
    [
        ("127.0.0.1:9009", Tcp("127.0.0.1", 9009), True),
        ("localhost:9009", Tcp("127.0.0.1", 9009), True),
        ("10.0.0.1:9009", Tcp("0.0.0.0", 9009), True),
        ("[::1]:9009", Tcp("::1", 9009), True),
        ("10.0.0.1", Tcp("10.0.0.1", 80), True),
        ("unix:/run/a", Unix(Path("/run/a")), True),
        ("unix:/run/a", Unix(Path("/run/b")), False),
        ("unix:/run/a", Tcp("127.0.0.1", 9009), False),
        ("127.0.0.1:9009", Unix(Path("/run/a")), False),
        ("127.0.0.1:9010", Tcp("127.0.0.1", 9009), False),
        ("10.0.0.1:9009", Tcp("10.0.0.2", 9009), False),
        ("127.0.0.1:9009", Inherited(3), True),  # which nobody can know
        ("127.0.0.1:9009", Tcp("127.0.0.1", 0), True),
    ],
)
def test_another_router_than_the_one_looked_at_is_noted(found, server, listen, same):
    edit = (UPSTREAMS, "server 127.0.0.1:9009;", f"server {server};")
    findings = found(edit, listen=listen, at=LISTEN)
    assert any("looked at above" in one.what for one in findings) != same


def test_timeouts_are_compared_with_each_other(found):
    assert found(whoami_timeout=2.9) == []
    finding = only(found(whoami_timeout=3))
    assert finding.remedy == "proxy_read_timeout 4s;"


SERVER_WIDE = OWN.replace("auth_request /who;", "").replace(
    "listen 8448;",
    "listen 8448; auth_request /who; auth_request_set $user $upstream_http_x_user_identifier;",
)


def test_server_that_asks_for_all_its_locations_is_understood(found_in, tmp_path):
    """The auth location inherits it, and is not asked itself."""
    findings = found_in(tmp_path, SERVER_WIDE, files={})
    assert [one for one in findings if one.status == WRONG] == []
    assert any("127.0.0.1:8008 is no upstream block" in one.what for one in findings)


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


def test_part_of_a_configuration_is_not_taken_for_the_whole():
    for file in (UPSTREAMS, SERVER):
        finding = only(look(SHIPPED / file, whoami_timeout=2, listen=None))
        assert "part of a configuration" in finding.what
        assert "nginx.conf" in finding.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http { server {", "nginx.conf"),
        ("include missing.conf;", "missing.conf"),
        ("http { server { location { proxy_pass http://a; } } }", "location is not complete"),
        ("http { server { location / { proxy_pass; } } }", "proxy_pass is not complete"),
        (
            'http { map $uri $x { "~(" y; } server { location ~ "(" { proxy_pass http://$x; } } }',
            "",
        ),
    ],
)
def test_what_nginx_could_not_read_either_is_no_traceback(tmp_path, text, words):
    path = tmp_path / "nginx.conf"
    path.write_text(text)
    finding = only(look(path, whoami_timeout=2, listen=None))
    assert words in f"{finding.place} {finding.what}"


def test_command_prints_place_and_remedy(tmp_path, shipped, asked):
    own = OWN.replace("internal;", "").replace(OWN_ROUTER, asked)
    path = written(tmp_path, own, files={})
    command = [sys.executable, "-m", "whoami_router", "check", "--only", "nginx"]
    said = subprocess.run(
        [*command, "--nginx-conf", path], capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert f"wrong  nginx  {path}:" in said.stdout
    assert "remedy: internal;" in said.stdout
    as_object = subprocess.run(
        [*command, "--nginx-conf", path, "--json"], capture_output=True, text=True, check=False
    )
    [wrong] = [one for one in json.loads(as_object.stdout)["findings"] if one["status"] == WRONG]
    assert wrong["place"].startswith(f"{path}:")
    good = subprocess.run(
        [*command, "--nginx-conf", shipped / "nginx.conf"], capture_output=True, check=False
    )
    assert good.returncode == 0
