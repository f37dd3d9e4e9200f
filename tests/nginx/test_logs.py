"""The access log: it says where each request went, and holds no secret."""

import json
import re
import time
from contextlib import ExitStack

import pytest
from starlette.responses import Response

from tests.nginx.conftest import USERS, new_directory
from tests.nginx.edge import (
    ACCESS_LOG,
    JSON_LOG,
    MEDIA,
    SYNC,
    TRUSTED_PROXY,
    UPSTREAMS,
    VERSIONS,
    asked_for,
    logged,
    sent_raw,
)
from tests.stack.nginx import EDGE_CACHE
from tests.stack.process import wait_until
from tests.stack.router import Router

BOTH = pytest.mark.parametrize("log", [ACCESS_LOG, JSON_LOG], ids=["text", "json"])
TOKEN = f"token-{USERS[0]}-0"
FIELDS = {
    "time",
    "client",
    "method",
    "uri",
    "status",
    "bytes",
    "user",
    "source",
    "group",
    "pool",
    "upstream",
    "upstream_status",
    "request_time",
    "connect_time",
    "header_time",
    "response_time",
    "request_id",
}
LINE = re.compile(
    r"(?P<client>\S+) \[(?P<time>[^]]+)\] \"(?P<method>\S*) (?P<uri>\S*)\" (?P<status>\d+) "
    r"(?P<bytes>\d+) user=(?P<user>\S*) source=(?P<source>\S*) group=(?P<group>\S*) "
    r"pool=(?P<pool>\S*) upstream=(?P<upstream>.*) upstream_status=(?P<upstream_status>.*) "
    r"time=(?P<request_time>[\d.]+) connect=(?P<connect_time>.*) header=(?P<header_time>.*) "
    r"response=(?P<response_time>.*) id=(?P<request_id>\S+)"
)


def parsed(log, line):
    """Return the fields of a line of the access log."""
    if log is JSON_LOG:
        return json.loads(line)
    found = LINE.fullmatch(line.decode("ascii"))
    assert found, line
    return found.groupdict()


@BOTH
def test_a_sync_is_found_again(make_site, pools, log):
    site = make_site(log)
    response = site.get(f"{SYNC}&timeout=0", TOKEN)
    [line] = logged(site)
    fields = parsed(log, line)
    assert set(fields) == FIELDS
    shown = {name: str(fields[name]) for name in FIELDS}
    assert shown["user"] == USERS[0]
    assert shown["source"] in ("whoami", "cache")
    assert (shown["group"], shown["pool"]) == ("sync", "synapse_sync")
    assert shown["upstream"] == pools[response.json()["server"]].address
    assert (shown["method"], shown["uri"]) == ("GET", f"{SYNC}&timeout=0")
    assert (shown["status"], shown["upstream_status"]) == ("200", "200")
    assert shown["bytes"] == str(len(response.content))
    assert shown["client"] == "127.0.0.1"
    assert shown["request_id"] == response.headers["x-request-id"]
    for name in ("request_time", "connect_time", "header_time", "response_time"):
        assert 0 <= float(shown[name]) < 30
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S+", shown["time"])


def logged_sources(log, lines):
    return [parsed(log, line)["source"] for line in lines]


@BOTH
@pytest.mark.parametrize("address", ["dead_address", "hung_address"])
def test_a_router_that_does_not_answer_is_shown(make_site, log, address, request):
    site = make_site(log, router_address=request.getfixturevalue(address))
    site.get(SYNC, TOKEN)
    assert logged_sources(log, logged(site)) == ["unavailable"]


@BOTH
@pytest.mark.parametrize(
    "answer",
    [Response(status_code=500), Response(status_code=401), Response(status_code=204)],
    ids=["error", "refusal", "nothing said"],
)
def test_a_router_that_answers_otherwise_is_shown(make_site, fake_router, log, answer):
    fake_router.answer = answer
    site = make_site(log, router_address=fake_router.address)
    site.get(SYNC, TOKEN)
    assert logged_sources(log, logged(site)) == ["unavailable"]


@BOTH
def test_each_request_of_a_connection_has_a_source_of_its_own(make_site, fake_router, log):
    known = Response(status_code=204, headers={"X-User-Identifier-Source": "cache"})
    site = make_site(log, router_address=fake_router.address)
    for answer in (known, Response(status_code=500)) * 2:
        fake_router.answer = answer
        site.get(SYNC, TOKEN)
        site.get(VERSIONS, TOKEN)
    nobody = "" if log is JSON_LOG else "-"
    assert logged_sources(log, logged(site, 8)) == ["cache", nobody, "unavailable", nobody] * 2


@BOTH
def test_a_known_user_is_known_while_the_edge_cache_asks_in_vain(make_site, main, log):
    """At a UNIX socket, where it fails before nginx has gone on with the request."""
    with ExitStack() as stack:
        directory = new_directory(stack)
        options = ("--edge-ttl", "1")
        socket = f"unix:{directory}/sock"
        with Router(directory, f"http://{main.address}", *options, listen=socket):
            site = make_site(log, EDGE_CACHE, router_address=socket)
            site.get(SYNC, TOKEN)
            last = time.monotonic()
    wait_until(lambda: time.monotonic() > last + 2, "the answer is too old")
    for _ in range(5):
        site.get(SYNC, TOKEN)
    site.get(SYNC, "another")
    assert logged_sources(log, logged(site, 7)) == ["whoami"] * 6 + ["unavailable"]


@BOTH
def test_a_worker_that_is_tried_in_vain_is_shown(make_site, pools, dead_address, log):
    site = make_site(log, (UPSTREAMS, pools["sync-1"].address, dead_address))
    for user in USERS:
        site.get(SYNC, f"token-{user}-0")
    lines = [parsed(log, line) for line in logged(site, len(USERS))]
    alive = pools["sync-2"].address
    assert {line["upstream"] for line in lines} == {alive, f"{dead_address}, {alive}"}


@BOTH
def test_a_client_behind_a_proxy_is_shown(make_site, log):
    site = make_site(log, TRUSTED_PROXY)
    site.get(VERSIONS, **{"x-forwarded-for": "203.0.113.5"})
    assert parsed(log, logged(site)[0])["client"] == "203.0.113.5"


@BOTH
def test_what_nginx_answers_itself_is_shown(make_site, dead_address, pools, log):
    site = make_site(log, (UPSTREAMS, pools["main"].address, dead_address))
    site.get(VERSIONS)
    site.client.options(VERSIONS)
    site.get("/_synapse/admin", **{"x-forwarded-for": "192.0.2.1"})
    fields = [parsed(log, line) for line in logged(site, 3)]
    assert [str(line["status"]) for line in fields] == ["503", "204", "403"]


HOSTILE = [
    '/_matrix/"',
    '/_matrix/"," "user":"admin',
    "/_matrix/\\",
    '/_matrix/\\"',
    "/_matrix/\\u0000",
    "/_matrix/%22%00%0a%0d",
    "/_matrix/\xff",
    "/_matrix/\xc3\xa9",
    "/_matrix/\xc3",
    "/_matrix/\xed\xa0\x80",
    "/_matrix/x?since=\xff",
    '/_matrix/x?since="',
    "/_matrix/x?since=\\",
    "/_matrix/$request_uri",
    "/_matrix/${http_authorization}",
    "/_matrix/{}[]|^`<>'",
    "/_matrix/x?\x80=\x80",
    "http://example.org?x",
    "/" + "x" * 7000,
]
HOSTILE_HEADERS = ['User-Agent: "\\\xff', 'Referer: "\\\x01', 'Authorization: Bearer "\\\xff']


@BOTH
def test_hostile_requests_are_a_line_each(make_site, log):
    site = make_site(log)
    for target in HOSTILE:
        asked_for(site, target, *HOSTILE_HEADERS)
    lines = logged(site, len(HOSTILE))
    assert len(lines) == len(HOSTILE)
    for target, line in zip(HOSTILE, lines, strict=True):
        fields = parsed(log, line)
        assert set(fields) == FIELDS
        assert all(str(value).isprintable() for value in fields.values())
        if target == "/_matrix/${http_authorization}":
            assert "Bearer" not in str(fields)


@BOTH
@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\x01\r\n\r\n",
        b"\r\n\r\nGARBAGE\r\n\r\n",
        b'GET /"\x01\xff HTTP/1.1\r\nHost: a\r\n\r\n',
        b"GET /_matrix/\x07 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n",
        b'GET / HTTP/1.1\r\nHost: "\xff\r\n\r\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b'A"\\\xff / HTTP/1.1\r\nHost: a\r\n\r\n',
    ],
)
def test_what_is_no_request_is_a_line_too(make_site, log, request_):
    site = make_site(log)
    host_closes = request_.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    try:
        sent_raw(site, host_closes)
    except TimeoutError:
        pytest.fail("nginx waits for more")
    except ConnectionResetError:
        pass  # it need not read all of it
    [line] = logged(site)
    assert set(parsed(log, line)) == FIELDS


@BOTH
def test_a_request_that_nginx_drops_is_a_line_too(make_site, log):
    """As it does when it cannot write to the edge cache: without any status."""
    site = make_site(log, EDGE_CACHE)
    directory = site.nginx.files.parent / "edge"
    directory.rename(directory.with_name("elsewhere"))
    assert (
        sent_raw(
            site,
            f"GET {SYNC} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode(),
        )
        == b""
    )
    [line] = logged(site)
    assert str(parsed(log, line)["status"]) == "000"


SECRET = "very-secret"
QUERIES = [
    "access_token={}",
    "access_token={}&since=s1",
    "since=s1&access_token={}&timeout=0",
    "since=s1&access_token={}",
    "access_token=a&access_token={}",
    "access%5Ftoken={}",
    "since=s1&%61ccess_token={}",
    "ACCESS_TOKEN={}",
    "since=s1&&access_token={}",
    "&access_token={}",
    "since&access_token={}",
    "since=s1;access_token={}",
    "since=s1?access_token={}",
    "since=s1#access_token={}",
    "since=s1%26access_token={}",
    "since=s1&amp;access_token={}",
    "since=access_token={}",
    "since=%22{}",
    "timeout=0&loginToken={}",
    "loginToken={}",
    "code={}&state=x",
    "state={}",
    "state={}&from=s1",
    "token={}",
    "client_secret={}&sid=1&token=1",
    "sid=1&client_secret={}",
    "redirectUrl=https://{}/",
    "ticket={}",
    "session={}",
    "{}",
    "{}=1",
    "user_id={}",
]
PATHS = [
    "/_matrix/client/v3/sync%3Faccess_token={}",
    "/_matrix/client/v3/sync%3faccess_token={}",
    "/_matrix/client/v3/sync%253Faccess_token={}",
    "/_matrix/client/v3/sync%25253faccess_token={}",
    "/_matrix/client/v3/sync%3Faccess_token={}?since=s1",
    "/_matrix/client/v3/sync%3baccess_token={}",
    "/_matrix/client/v3/sync%253Baccess_token={}",
    "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{}/restart",
    "/_matrix/client/unstable/io.element.msc4388/rendezvous/{}",
    "/_synapse/client/rendezvous/{}",
    "/_matrix/client/v3/sync&access_token={}",
    "/_matrix/client/v3/sync%26access_token={}",
    "/_matrix/client/v3/sync;access_token={}",
    "/_matrix/client/v3/sync#access_token={}",
    "/_matrix/client/v3/sync#?access_token={}",
    "/_synapse/admin/v1/registration_tokens/{}",
    "/_synapse/admin/v1/registration_tokens/{}?x",
    "http://example.org/_matrix/client/v3/sync?access_token={}",
    "http://user:{}@example.org/_matrix/client/v3/sync",
    # More than an expression can be matched with.
    f"/_matrix/%{'25' * 3800}3Faccess_token={{}}",
    f"/_matrix/client/v3/sync?{'since=&' * 1000}access_token={{}}",
    f"/_matrix/client/v3/sync?{'&' * 7000}access_token={{}}",
]


@BOTH
def test_no_secret_is_logged(make_site, log):
    site = make_site(log)
    targets = [f"{path}?{query}" for path in (VERSIONS, SYNC[:-9], MEDIA) for query in QUERIES]
    targets += PATHS
    for target in targets:
        headers = [f"Authorization: Bearer {SECRET}", f"Cookie: {SECRET}", f"Referer: {SECRET}"]
        asked_for(site, target.format(SECRET), *headers, address="127.0.0.1")
    lines = logged(site, len(targets))
    assert len(lines) == len(targets)
    for target, line in zip(targets, lines, strict=True):
        assert SECRET.encode() not in line, target
        if "user:" not in target:
            assert parsed(log, line)["uri"].startswith(("/_", "(hidden)")), line


@BOTH
def test_harmless_queries_and_paths_are_shown(make_site, log):
    site = make_site(log)
    shown = [
        SYNC,
        f"{SYNC}&timeout=30000&set_presence=offline&filter=1",
        "/_matrix/client/v3/sync?full_state=true&since=s7_1_2~4.5",
        "/_matrix/client/v3/rooms/!a:b/messages?dir=b&limit=30&from=t12-34_5_6",
        "/_matrix/client/v3/rooms/%21a%3Ab/state/m.x/@irc_=5bfoo:b",
        "/_matrix/client/v3/directory/room/%23a%3Ab",
        "/_matrix/media/v3/thumbnail/a.b/c?width=32&height=32&method=crop",
        "/_matrix/client/versions?",
    ]
    for target in shown:
        asked_for(site, target)
    assert [parsed(log, line)["uri"] for line in logged(site, len(shown))] == shown


@pytest.mark.parametrize(
    "target",
    [
        "/" * 7900,
        "/_matrix/client/" + "a/" * 3900,
        "/_matrix/client/v3/rooms/" + "/" * 7800,
        "/_matrix/client/v3/rooms/" + "a/relations" * 700,
        "/_matrix/client/v3/user/" + "/rooms/a/account_data" * 370,
        "/_synapse/admin/v1/room/" + "/media" * 1300 + "x",
        "/_synapse/admin/v1/users/" + "/media" * 1300 + "x",
        "/_synapse/client/pick_username/" + "a" * 7800,
        "/_synapse/client/rendezvous" * 290,
        "/.." * 2600,
        "/%2e%2e" * 1100 + "x",
        "/%2e." * 1500,
        "/_matrix/" + "%25" * 2600,
        "/_matrix/%" + "25" * 3900,
        "/_matrix/" + "%2525" * 1500,
        "/_matrix/" + "#" * 7800,
        "/_matrix/?" + "since=1&" * 970 + "x",
        "/_matrix/?" + "since=" + "1" * 7800 + "%",
        "/_matrix/?" + "since=&" * 1100 + "%",
        "/_matrix/?" + "t" * 7800,
        "/_matrix/?" + "&" * 7800,
        "/_matrix/?" + "?" * 7800,
        "/_matrix/client/v3/sync?" + "a&" * 3900,
        "/_matrix/client/v3/sync?" + "access_token&" * 600,
    ],
)
def test_no_request_keeps_nginx_busy(make_site, target):
    """Expressions that backtrack would take seconds for it, and hold everybody up."""
    site = make_site(JSON_LOG, EDGE_CACHE, TRUSTED_PROXY)
    headers = [
        "X-Forwarded-For: " + "." * 2000 + ", a",
        "X-Request-ID: " + "a" * 2000 + " ",
        "X-Forwarded-Proto: " + "http" * 500,
        "Upgrade: " + "websocket" * 200,
        "Host: a" + ":1" * 1000,
    ]
    start = time.monotonic()
    asked_for(site, target, *headers[:4], address="127.0.0.1")
    assert time.monotonic() - start < 1
    json.loads(logged(site)[0])
    start = time.monotonic()
    sent_raw(
        site,
        f"OPTIONS {target} HTTP/1.1\r\n{headers[4]}\r\nConnection: close\r\n\r\n".encode(),
    )
    assert time.monotonic() - start < 1
