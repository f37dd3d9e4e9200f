"""Each line of the nginx files that nobody may delete: what it promises, and that it is it.

A promise is checked twice: with the files as they are shipped it holds, and with its line
deleted it does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import pytest
from starlette.responses import Response

from tests.fake_synapse import served
from tests.nginx import edge, edge_cache
from tests.nginx.conftest import USERS, FakeRouter
from tests.stack.nginx import ACCESS_LOG, DEBUG_HEADERS, SHIPPED
from tests.stack.process import wait_until
from whoami_router.tokens import by_name, extract_token

SYNC = "/_matrix/client/v3/sync?since=s1"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1"
TOKEN = f"token-{USERS[0]}-0"


@dataclass
class Setting:
    """What a promise is checked in: it starts the nginx it wants, with ``edits`` applied."""

    make_site: Callable
    edits: list
    pools: dict
    fake_router: object
    dead_address: str
    hung_address: str

    def site(self, *edits, **more):
        return self.make_site(*self.edits, *edits, **more)

    def asked(self, site, *paths, **headers):
        """Send requests that the fake router answers; return what it was asked."""
        for path in paths:
            assert site.get(path, TOKEN, **headers).status_code == 200
        return self.fake_router.requests


def ports(requests):
    return {request.client.port for request in requests}


# What the router is told.


def header_token_is_passed_on(setting):
    [request] = setting.asked(setting.site(router_address=setting.fake_router.address), SYNC)
    assert request.headers.get("authorization") == f"Bearer {TOKEN}"


def query_is_passed_on(setting):
    [request] = setting.asked(setting.site(router_address=setting.fake_router.address), SYNC)
    assert request.headers.get("x-original-uri") == SYNC


def clients_address_is_passed_on(setting):
    site = setting.site(router_address=setting.fake_router.address)
    [request] = setting.asked(site, SYNC, **{"x-forwarded-for": "192.0.2.1"})
    assert request.headers.get("x-forwarded-for") == "127.0.0.1"


def clients_user_agent_is_passed_on(setting):
    site = setting.site(router_address=setting.fake_router.address)
    [request] = setting.asked(site, SYNC, **{"user-agent": "Element/1.0"})
    assert request.headers.get("user-agent") == "Element/1.0"


def nothing_else_is_passed_on(setting):
    site = setting.site(router_address=setting.fake_router.address)
    [request] = setting.asked(site, SYNC, cookie="secret", **{"x-forwarded-uri": "/?access_token="})
    names = {"host", "authorization", "x-original-uri", "x-forwarded-for", "user-agent"}
    assert set(request.headers) == names


# Connections.


def router_is_asked_over_one_connection(setting):
    site = setting.site(router_address=setting.fake_router.address)
    assert len(ports(setting.asked(site, *[SYNC] * 20))) == 1


def synapse_is_asked_over_one_connection(setting):
    site = setting.site()
    for _ in range(20):
        site.get("/_matrix/client/versions")
    assert len(ports(setting.pools["main"].requests)) == 1


def posts_and_gets_alternate_without_one_failure(setting):
    site = setting.site(DEBUG_HEADERS)
    for number in range(40):
        if number % 2:
            response = site.get(SYNC, TOKEN)
        else:
            body = '{"lists": {}, "padding": "' + "x" * 2000 + '"}'
            headers = {"authorization": f"Bearer {TOKEN}"}
            response = site.client.post(SLIDING, content=body, headers=headers)
        assert response.status_code == 200
        assert response.headers.get("x-user-identifier") == USERS[0]


def each_token_is_asked_of_one_router(setting):
    fakes = [FakeRouter(), FakeRouter()]
    with served(fakes[0]) as one, served(fakes[1]) as other:
        site = setting.site(router_address=(one, other))
        for number in range(40):
            for _ in range(3):
                site.get(SYNC, f"token-{number}")
            for _ in range(3):
                site.get(f"{SYNC}&access_token=query-{number}")
    asked = [
        {extract_token(by_name(request.scope["headers"])) for request in fake.requests}
        for fake in fakes
    ]
    assert not asked[0] & asked[1]
    assert min(map(len, asked)) > 10  # of 80


# Fail open.


def dead_router_costs_no_sync(setting):
    assert setting.site(router_address=setting.dead_address).get(SYNC, TOKEN).status_code == 200


def hung_router_costs_no_sync_and_little_time(setting):
    site = setting.site(router_address=setting.hung_address)
    try:
        response = site.client.get(SYNC, timeout=6)
    except httpx.TimeoutException:
        raise AssertionError("the sync hangs with the router") from None
    assert response.status_code == 200


def no_answer_of_the_router_costs_a_sync(setting):
    site = setting.site(router_address=setting.fake_router.address)
    registered = {*HTTPStatus, 305, 402, 418, 506} - {HTTPStatus.REQUEST_TIMEOUT}
    refusals = {status for status in registered if 300 <= status < 500}
    for status in sorted({*refusals, *range(500, 600)}):
        setting.fake_router.answer = Response(status_code=status)
        assert site.get(SYNC, TOKEN).status_code == 200, status


def header_token_keeps_its_worker_without_router(setting):
    site = setting.site(router_address=setting.dead_address)
    servers = [{site.server(SYNC, f"token-{n}") for _ in range(4)} for n in range(20)]
    assert all(len(reached) == 1 for reached in servers)
    assert len(set.union(*servers)) == 2


def query_token_keeps_its_worker_without_router(setting):
    site = setting.site(router_address=setting.dead_address)
    servers = [{site.server(f"{SYNC}&access_token=token-{n}") for _ in range(4)} for n in range(20)]
    assert all(len(reached) == 1 for reached in servers)
    assert len(set.union(*servers)) == 2


# Routing.


def each_user_keeps_its_worker(path):
    def promise(setting):
        site = setting.site()
        for user in USERS:
            servers = {site.server(path, f"token-{user}-{device % 3}") for device in range(6)}
            assert len(servers) == 1

    return promise


def slow_sync_is_not_started_on_a_second_worker(setting):
    short = [("conf.d/synapse.conf", "proxy_read_timeout 600s;", "proxy_read_timeout 2s;")]
    if not setting.edits:
        line = "proxy_next_upstream_timeout 30s;"
        short.append(("conf.d/synapse.conf", line, "proxy_next_upstream_timeout 1s;"))
    site = setting.site(*short)
    workers = [setting.pools[name] for name in ("sync-1", "sync-2")]
    for worker in workers:
        worker.held = True
    assert site.get(SYNC, TOKEN).status_code == 504
    assert sum(len(worker.requests) for worker in workers) == 1


def dead_worker_costs_no_sync(setting):
    site = setting.site(initial=(setting.dead_address, setting.pools["initial-1"].address))
    for user in USERS:
        assert site.server("/_matrix/client/v3/sync", f"token-{user}-0") == "initial-1"


# What outsiders may see and set.


def nobody_asks_the_router_from_outside(setting):
    site = setting.site(router_address=setting.fake_router.address)
    site.get("/_whoami_router/resolve", TOKEN)
    assert setting.fake_router.requests == []


def synapse_sees(name, value, **headers):
    def promise(setting):
        for path in (SYNC, "/_matrix/client/versions"):
            seen = setting.site().get(path, TOKEN, **headers).json()["headers"]
            assert seen.get(name) == value

    return promise


def no_log_shows_a_query_token(setting):
    """Neither of a served request nor of one whose upstreams are dead."""
    site = setting.site(
        ACCESS_LOG,
        ("nginx.conf", "error_log stderr emerg;", "error_log stderr error;"),  # as Debian's
        router_address=setting.dead_address,
        initial=(setting.dead_address, "unix:/nowhere/synapse.sock"),
    )
    for path in (SYNC, *["/_matrix/client/v3/sync?x"] * 3, "/_matrix/client/versions?x"):
        site.get(f"{path}&access_token=very-secret")
    wait_until(lambda: "/versions" in site.nginx.log_text(), "the access log")
    assert "very-secret" not in site.nginx.log_text()


ROUTER = "snippets/whoami_router.conf"
ROUTE = "snippets/route_by_user.conf"
PROXY = "snippets/proxy.conf"
MAPS = "conf.d/maps.conf"
UPSTREAMS = "conf.d/upstreams.conf"
SERVER = "conf.d/synapse.conf"

# File, how the lines to delete begin, and what they promise.
TRAPS = [
    (ROUTER, "    internal;", nobody_asks_the_router_from_outside),
    (ROUTER, "    proxy_pass_request_headers off;", nothing_else_is_passed_on),
    (ROUTER, "    proxy_set_header Authorization ", header_token_is_passed_on),
    (ROUTER, "    proxy_set_header X-Original-URI ", query_is_passed_on),
    (ROUTER, "    proxy_set_header X-Forwarded-For", clients_address_is_passed_on),
    (ROUTER, "    proxy_set_header User-Agent ", clients_user_agent_is_passed_on),
    (
        ROUTER,
        '    proxy_set_header Content-Length "";',
        posts_and_gets_alternate_without_one_failure,
    ),
    (ROUTER, "    proxy_http_version 1.1;", router_is_asked_over_one_connection),
    (ROUTER, '    proxy_set_header Connection "";', router_is_asked_over_one_connection),
    (ROUTER, "    proxy_read_timeout ", hung_router_costs_no_sync_and_little_time),
    (ROUTER, "    proxy_intercept_errors on;", no_answer_of_the_router_costs_a_sync),
    (ROUTE, "auth_request /", each_user_keeps_its_worker(SYNC)),
    (MAPS, "    default $user_identifier;", each_user_keeps_its_worker(SYNC)),
    (MAPS, '    ""      $token_routing_key;', header_token_keeps_its_worker_without_router),
    (MAPS, '    "~^Bearer ', header_token_keeps_its_worker_without_router),
    (
        MAPS,
        "    default                            $query_access_token;",
        query_token_keeps_its_worker_without_router,
    ),
    (MAPS, '    "~^[^?]*', query_token_keeps_its_worker_without_router),
    (UPSTREAMS, "    hash $token_routing_key", each_token_is_asked_of_one_router),
    (UPSTREAMS, "    keepalive 32;", synapse_is_asked_over_one_connection),
    (UPSTREAMS, "    hash $routing_key", each_user_keeps_its_worker(SYNC)),
    (SERVER, "    proxy_next_upstream_timeout ", slow_sync_is_not_started_on_a_second_worker),
    (PROXY, "proxy_http_version 1.1;", synapse_is_asked_over_one_connection),
    (PROXY, "proxy_set_header Connection ", synapse_is_asked_over_one_connection),
    (PROXY, "proxy_set_header Host ", synapse_sees("host", "example.org", host="example.org")),
    (
        PROXY,
        "proxy_set_header X-Forwarded-For ",
        synapse_sees("x-forwarded-for", "127.0.0.1", **{"x-forwarded-for": "192.0.2.1"}),
    ),
    (
        PROXY,
        "proxy_set_header X-Forwarded-Proto ",
        synapse_sees("x-forwarded-proto", "http", **{"x-forwarded-proto": "https"}),
    ),
    (
        PROXY,
        "proxy_set_header X-User-Identifier ",
        synapse_sees("x-user-identifier", None, **{"x-user-identifier": "bob"}),
    ),
    (
        PROXY,
        "proxy_set_header X-User-Identifier-Source ",
        synapse_sees("x-user-identifier-source", None, **{"x-user-identifier-source": "cache"}),
    ),
    ("snippets/access_log.conf", "error_log stderr emerg;", no_log_shows_a_query_token),
    *edge_cache.TRAPS,
    *edge.TRAPS,
]


def deletions(file, start):
    """Return the edits that delete every line of the file that begins so."""
    lines = (SHIPPED / file).read_text().splitlines(keepends=True)
    found = {line for line in lines if line.startswith(start)}
    assert found, f"{file} has no line {start!r}"
    return [(file, line, "") for line in sorted(found)]


@pytest.fixture
def setting(make_site, pools, fake_router, dead_address, hung_address):
    return Setting(make_site, [], pools, fake_router, dead_address, hung_address)


@pytest.mark.parametrize(
    ("file", "start", "promise"),
    TRAPS,
    ids=[f"{file}: {start.strip()}" for file, start, _ in TRAPS],
)
def test_promise_holds_with_the_line_and_not_without_it(setting, file, start, promise):
    promise(setting)
    setting.edits = deletions(file, start)
    for synapse in setting.pools.values():
        synapse.requests.clear()
        synapse.held = False
    setting.fake_router.requests.clear()
    setting.fake_router.answer = Response(status_code=204)
    setting.fake_router.held = False
    with pytest.raises(AssertionError):
        promise(setting)


@pytest.mark.parametrize(
    "promise",
    [
        dead_router_costs_no_sync,
        dead_worker_costs_no_sync,
        each_user_keeps_its_worker(SLIDING),
        each_user_keeps_its_worker("/_matrix/client/v3/initialSync"),
    ],
)
def test_promise_that_no_single_line_keeps(setting, promise):
    promise(setting)


def test_every_marked_line_is_among_the_traps():
    """A line marked (!), or the directive below such a comment, has a trap of its own.

    A map has it if one of its lines has.
    """
    marked = []
    for path in sorted(SHIPPED.rglob("*.conf")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if "(!)" not in line:
                continue
            directive = line
            while directive.strip().startswith("#"):
                number += 1  # noqa: PLW2901
                directive = lines[number]
            if directive:  # else it is the comment that explains the mark
                end = lines.index("}", number) if directive.startswith("map ") else number + 1
                marked.append((str(path.relative_to(SHIPPED)), lines[number:end]))
    assert len(marked) >= 10  # or the search finds nothing
    for file, directives in marked:
        assert any(
            file == trap and directive.startswith(start)
            for trap, start, _ in TRAPS
            for directive in directives
        ), (file, directives)
