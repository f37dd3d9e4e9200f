"""What nginx does with a request, read from its configuration, beside a real nginx."""

from http.client import HTTPConnection

import pytest

from tests.nginx.own import own_nginx
from whoami_router.check.nginx.site import (
    Sample,
    Site,
    hash_of,
    normalized,
    parse_target,
    primary_servers,
    seconds,
)
from whoami_router.nginx_conf import load
from whoami_router.nginx_maps import Undecided

SYNC = Sample("a sync", "GET", "/_matrix/client/v3/sync?since=s1").with_token("t")


@pytest.fixture
def site(tmp_path):
    def site(http):
        path = tmp_path / "nginx.conf"
        path.write_text(f"events {{}} http {{ {http} }}")
        return Site(load(path))

    return site


def walked(site, sample=SYNC, identifier="alice"):
    return site.walk(site.configuration.servers[0], sample, identifier)


LOCATIONS = """
    location = /exact { return 201; }
    location / { return 202; }
    location /prefix/ { return 203; location ~ \\.php$ { return 204; } }
    location /prefix/longer { return 205; }
    location ^~ /final/ { return 206; }
    location ~ ^/(?<name>re|final)gex$ { return 207; }
    location ~* ^/CASE$ { return 208; }
    location ~ ^/final { return 209; }
    location @named { return 210; }
    location =/tight { return 211; }
"""


PATHS = [
    "/exact",
    "/exact/",
    "/",
    "/other",
    "/prefix/",
    "/prefix/a.php",
    "/prefix/longer/x",
    "/final/gex",
    "/finalgex",
    "/regex",
    "/case",
    "/finale",
    "/tight",
    "//exact",
    "/a/../exact",
    "/%65xact",
    "/prefix/./longer",
    "/exact?a=/prefix",
    "/@named",
]


def test_each_path_has_the_location_that_nginx_gives_it(site):
    server = f"server {{ listen 8080; {LOCATIONS} }}"
    read = site(server)
    with own_nginx(server, files={}) as (client, _):
        for path in PATHS:
            connection = HTTPConnection(client.base_url.host, client.base_url.port, timeout=5)
            connection.request("GET", path)  # httpx would change it first
            status = connection.getresponse().status
            connection.close()
            assert walked(read, Sample("", "GET", path)).status == status, path


CONDITIONS = """
    set $kind none;
    set $zero 0;
    if ($request_method = POST) { return 201; }
    if ($arg_a) { return 202; }
    if ($zero) { return 203; }
    if ($http_user_agent ~* "^bot") { return 204; }
    if ($request_uri !~ "^/(a|b)") { return 205; }
    if ($kind != none) { return 206; }
    error_page 420 = @other;
    location / { return 207; }
    location /b { if ($request_uri ~ "^/b/c") { return 420; } return 208; }
    location @other { return 209; }
"""


@pytest.mark.parametrize(
    ("method", "target", "agent"),
    [
        ("GET", "/a", "x"),
        ("POST", "/a", "x"),
        ("GET", "/a?a=1", "x"),
        ("GET", "/a?a=0", "x"),
        ("GET", "/a", "BOT"),
        ("GET", "/c", "x"),
        ("GET", "/b", "x"),
        ("GET", "/b/c", "x"),
    ],
)
def test_conditions_and_error_pages_lead_where_nginx_goes(site, method, target, agent):
    server = f"server {{ listen 8080; {CONDITIONS} }}"
    with own_nginx(server, files={}) as (client, _):
        status = client.request(method, target, headers={"user-agent": agent}).status_code
    sample = Sample("", method, target, {"user-agent": agent})
    assert walked(site(server), sample).status == status


ASKING = """
    map $user $key { "" $token; default $user; }
    map $http_authorization $token { default $query; "~^Bearer (?<found>.+)$" $found; }
    map SOURCE $query { default ""; PATTERN $named; }
    upstream router { hash $token; server 127.0.0.1:1; server 127.0.0.1:2; }
    upstream pool { hash $key consistent; server 127.0.0.1:3; server 127.0.0.1:4 backup; }
    server {
        location = /ask { internal; proxy_pass http://router/resolve; }
        location / {
            auth_request /ask;
            auth_request_set $user $upstream_http_x_user_identifier;
            proxy_pass http://pool;
        }
    }
"""


def asking(source, pattern):
    return ASKING.replace("SOURCE", source).replace("PATTERN", pattern)


def test_request_reaches_its_pool_with_its_key(site):
    arrival = walked(site(asking("$request_uri", '"~access_token=(?<named>.+)"')))
    assert arrival.target.name == "pool"
    assert arrival.key == "alice"
    assert arrival.asked.directive.args == ("=", "/ask")


@pytest.mark.parametrize(
    ("source", "pattern", "key"),
    [
        ("$request_uri", '"~access_token=(?<named>.+)"', "q"),
        # Empty when the router is asked, and so ever after.
        ("$arg_access_token", '"~^(?<named>.+)"', ""),
    ],
)
def test_variable_that_the_question_needed_keeps_its_value(site, source, pattern, key):
    sample = Sample("", "GET", "/x?access_token=q")
    assert walked(site(asking(source, pattern)), sample, "").key == key


def test_answer_is_known_only_where_it_is_set(site):
    text = asking("$request_uri", '"~access_token=(?<named>.+)"').replace(
        "hash $key", "hash $upstream_http_x_user_identifier$http_x_user_identifier"
    )
    sample = Sample("", "GET", "/", {"x-user-identifier": "mallory"})
    assert walked(site(text), sample).key == "mallory"


def test_limit_by_the_user_fixes_the_key_before_it_is_known(site):
    text = asking("$request_uri", '"~access_token=(?<named>.+)"')
    assert walked(site(text)).key == "alice"
    text = text.replace("location / {", "location / { limit_req zone=one burst=9;")
    text = f"limit_req_zone $key zone=one:1m rate=1r/s; {text}"
    assert walked(site(text)).key == "t"


def test_addresses_have_the_value_of_their_network(site):
    geo = "geo $near { default 0; 127.0.0.0/8 1; 127.0.0.2 2; ::1/128 3; proxy 10.0.0.0/8; }"
    server = "server { if ($near = NUMBER) { return 200; } location / { return 201; } }"
    for address, value in (("127.0.0.1", 1), ("127.0.0.2", 2), ("::1", 3), ("192.0.2.1", 0)):
        read = site(f"{geo} {server.replace('NUMBER', str(value))}")
        assert walked(read, Sample("", "GET", "/", address=address)).status == 200, address


def test_what_is_not_understood_is_not_guessed(site):
    for text in (
        'map $uri $x { "~(*SKIP)" 1; } server { if ($x) { return 200; } location / { } }',
        'server { location ~ "(*UTF8)a" { return 200; } }',
        "error_page 420 = @a; server { location / { return 420; } location @a { return 420; } }",
    ):
        with pytest.raises(Undecided):
            walked(site(text))


def test_the_last_method_chooses_the_server(site):
    read = site(
        "upstream a { hash $x; server b; } upstream b { hash $x; least_conn; server b; }"
        "upstream c { server a; server b backup; server c down; server d weight=2; }"
    )
    assert hash_of(read.upstreams["a"]).args == ("$x",)
    assert hash_of(read.upstreams["b"]) is None
    assert primary_servers(read.upstreams["c"]) == ["a", "d"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a", ("http", "a", "")),
        ("http://a:1/resolve", ("http", "a:1", "/resolve")),
        ("https://[::1]:1/x?y", ("https", "[::1]:1", "/x?y")),
        ("http://unix:/run/a.sock:/resolve", ("http", "unix:/run/a.sock", "/resolve")),
        ("http://unix:/run/a.sock", ("http", "unix:/run/a.sock", "")),
        ("nothing", None),
    ],
)
def test_proxy_pass_is_taken_apart(text, expected):
    found = parse_target(text)
    assert (found and (found.scheme, found.name, found.uri)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3), ("3s", 3), ("500ms", 0.5), ("1m 30s", 90), ("1h", 3600), ("soon", None), ("", None)],
)
def test_times_are_seconds(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", "/"), ("//a//b/", "/a/b/"), ("/a/../b", "/b"), ("/a/./b/", "/a/b/"), ("/a%2Fb", "/a/b")],
)
def test_paths_are_as_nginx_has_them(path, expected):
    assert normalized(path) == expected
