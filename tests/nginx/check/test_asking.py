"""What is found about the location that asks whoami-router."""

from pathlib import Path

import pytest

from tests.nginx.check.conftest import only
from tests.nginx.check.edits import (
    HASH,
    KEPT_FIRST,
    LISTEN,
    ROUTE,
    ROUTER,
    SATISFY_ANY,
    SERVER,
    UPSTREAMS,
    changed,
)
from tests.nginx.check.own import OWN, README, README_FILES
from tests.nginx.test_migration import before
from whoami_router.check.findings import WRONG
from whoami_router.settings import Inherited, Tcp, Unix

TWO_ROUTERS = (
    UPSTREAMS,
    "    server 127.0.0.1:9009;\n",
    "    server 127.0.0.1:9009;\n    server 127.0.0.1:9009 max_fails=0;\n",
)

LISTEN_LINE = f"server {LISTEN};"

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
]


@changed(CHANGES)
def test_change_is_found_and_nothing_else(finds_only, edits, status, words, file):
    finds_only(edits, status, words, file)


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
