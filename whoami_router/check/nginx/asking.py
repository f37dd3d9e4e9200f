"""The location where nginx asks whoami-router: what it sends, and that it fails open."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from whoami_router.check.findings import Finding, note, ok, wrong
from whoami_router.check.nginx import reached
from whoami_router.check.nginx.site import (
    PART,
    Sample,
    Site,
    Target,
    Walk,
    auth_request,
    depends_on,
    hash_of,
    modifier_and_path,
    parse_target,
    primary_servers,
    seconds,
)
from whoami_router.nginx_conf import Directive, Location
from whoami_router.nginx_maps import Undecided
from whoami_router.settings import Inherited, ListenAddress, Tcp, Unix

# So long whoami-router keeps an idle connection.
_IDLE_SECONDS = 75
# So long a router that hangs may hold a request up.
_LONGEST_WAIT = 10
_DEFAULT_WAIT = "60s"

# What nginx answers itself when a router is away, and what something else in its place would.
_MUST_FAIL_OPEN = ("400", "401", "403", "404", "429", "500", "502", "503", "504")

_SNIPPET = "snippets/whoami_router.conf"
_OPEN = "error_page 400 401 403 404 429 500 502 503 504 = @whoami_router_unavailable;"

_SYNC = Sample("a sync", "GET", "/_matrix/client/v3/sync?since=s1")


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, where, and what that location proxies to."""

    asker: Location
    location: Location
    passed: Directive
    target: Target
    upstream: Directive | None

    @property
    def place(self) -> str:
        """Where the auth location stands."""
        return self.location.directive.place


def found(site: Site, asker: Location) -> Asking | Finding:
    """Return where a location asks whoami-router, or what is wrong about that."""
    uri = auth_request(asker)
    place = asker.inherited("auth_request")[-1].place
    location = site.auth_location(asker)
    passed = None if location is None else next(location.directive.find("proxy_pass"), None)
    everything = ("", "/")  # what no other location takes
    if location is None or location.server is None or modifier_and_path(location) == everything:
        return wrong(
            PART,
            f"this server has no location {uri}: nobody is asked, and the requests may fail",
            f"include {_SNIPPET}; in the server",
            place,
        )
    if passed is None or not passed.args:
        return wrong(
            PART,
            f"the location that {uri} leads to asks no whoami-router: it proxies nowhere",
            f"include {_SNIPPET}; in its place, and auth_request /_whoami_router/resolve;",
            location.directive.place,
        )
    try:
        walk = Walk(site, location.server, _SYNC, "")
        walk.enter_server()
        walk.enter(location)
        target = parse_target(walk.text(passed.args[0]))
    except Undecided:
        target = None
    if target is None:
        return note(
            PART,
            f"where {passed.args[0]} is cannot be told from the configuration alone",
            place=passed.place,
        )
    return Asking(asker, location, passed, target, site.upstreams.get(target.name))


def look(
    site: Site, asking: Asking, *, whoami_timeout: float, listen: ListenAddress | None
) -> Iterator[Finding]:
    """Yield what is right and wrong about an auth location."""
    findings = [
        *_target(asking, listen),
        *_answers(site, asking, listen),
        *_outsiders(asking),
        *_sent(site, asking),
        *_connections(site, asking),
        *_fails_open(site, asking),
        *_waits(asking, whoami_timeout),
    ]
    if all(one.status != "wrong" for one in findings):
        yield ok(PART, f"whoami-router is asked, and fails open (location at {asking.place})")
    yield from findings


# Whether it asks.


def skipped(asker: Location) -> Iterator[Finding]:
    """Yield what lets requests pass before anybody is asked."""
    lines = asker.inherited("satisfy")
    if lines and lines[-1].args == ("any",):
        yield wrong(
            PART,
            "with satisfy any nginx asks nobody about a request that an allow line, or a password, "
            "lets in: it goes by its token",
            "satisfy all;",
            lines[-1].place,
        )


# Whom it asks.


def _target(asking: Asking, listen: ListenAddress | None) -> Iterator[Finding]:
    target, place = asking.target, asking.passed.place
    if target.scheme != "http":
        yield wrong(
            PART,
            "whoami-router speaks no TLS: every request goes by its token",
            f"proxy_pass http://{target.name}/resolve;",
            place,
        )
    if _path_asked(asking) != "/resolve":
        yield wrong(
            PART,
            "whoami-router answers at /resolve only: every request goes by its token",
            f"proxy_pass http://{target.name}/resolve;",
            place,
        )
    if asking.upstream is None:
        yield wrong(
            PART,
            f"{target.name} is no upstream block, so each question opens a connection of its own",
            "upstream whoami_router { server 127.0.0.1:9009; keepalive 32; } and "
            "proxy_pass http://whoami_router/resolve;",
            place,
        )
    servers = [one.text for one in _servers(asking)]
    if listen is not None and _known(listen) and not any(_is(one, listen) for one in servers):
        yield note(
            PART,
            f"nginx asks {', '.join(servers)}, and the router looked at above is {listen}",
            "give --listen the address that nginx asks, or correct the server line",
            place,
        )


def _answers(site: Site, asking: Asking, listen: ListenAddress | None) -> Iterator[Finding]:
    known = listen is not None and _known(listen)
    servers = _servers(asking)
    elsewhere = known and not any(_is(one.text, listen) for one in servers if listen)
    return reached.look(site, servers, right=str(listen) if elsewhere else None)


def _servers(asking: Asking) -> list[reached.Server]:
    """Return the addresses that nginx asks."""
    if asking.upstream is None:
        return [reached.Server(asking.target.name, asking.passed.place)]
    return [
        reached.Server(one.args[0], one.place)
        for one in asking.upstream.find("server")
        if one.args and "down" not in one.args
    ]


def _path_asked(asking: Asking) -> str:
    uri = asking.target.uri.partition("?")[0]
    if uri:
        return uri
    return (auth_request(asking.asker) or "").partition("?")[0]


def _known(listen: ListenAddress) -> bool:
    return not isinstance(listen, Inherited) and not (isinstance(listen, Tcp) and listen.port == 0)


def _is(server: str, listen: ListenAddress) -> bool:
    if isinstance(listen, Unix):
        return server == str(listen)
    if not isinstance(listen, Tcp) or server.startswith("unix:"):
        return False
    host, colon, port = server.rpartition(":")
    if not colon or not port.isdigit():
        host, port = server, "80"
    host = host.strip("[]")
    loopback = ("127.0.0.1", "::1", "localhost")
    everywhere = listen.host in ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)
    same = host == listen.host or everywhere or (host in loopback and listen.host in loopback)
    return same and int(port) == listen.port


# Who may ask.


def _outsiders(asking: Asking) -> Iterator[Finding]:
    if not any(asking.location.directive.find("internal")):
        yield wrong(
            PART,
            "any client can ask whoami-router through nginx",
            "internal;",
            asking.place,
        )


# What it is told.


def _sent(site: Site, asking: Asking) -> Iterator[Finding]:
    headers = _Headers(asking.location)
    if headers.value("content-length") != "" and not any(
        asking.location.inherited("proxy_set_body")
    ):
        yield wrong(
            PART,
            "a POST announces a body that nginx does not send, and the next question on that "
            "connection fails",
            'proxy_set_header Content-Length "";',
            headers.place("content-length"),
        )
    if not headers.passes("authorization"):
        yield wrong(
            PART,
            "whoami-router is not told the client's Authorization: no token in a header is found",
            "proxy_set_header Authorization $http_authorization;",
            headers.place("authorization"),
        )
    uri = headers.value("x-original-uri") or headers.value("x-forwarded-uri")
    if uri is None or not depends_on(site, uri, "request_uri"):
        yield wrong(
            PART,
            "tokens in the query are not found: in the auth location $uri and $args are its own",
            "proxy_set_header X-Original-URI $request_uri;",
            headers.place("x-original-uri"),
        )
    yield from _about_the_client(headers)
    if headers.passes_all:
        yield note(
            PART,
            "cookies and all other headers of the client reach whoami-router, to no purpose",
            "proxy_pass_request_headers off;",
            asking.place,
        )


class _Headers:
    """What a location sends; one proxy_set_header drops all that would be inherited."""

    def __init__(self, location: Location) -> None:
        self._place = location.directive.place
        self._lines = {
            one.args[0].lower(): one for one in location.inherited("proxy_set_header") if one.args
        }
        self.passes_all = _value(location, "proxy_pass_request_headers", "on") == "on"

    def value(self, name: str) -> str | None:
        """Return what the header is set to, None if it is not set."""
        return self._lines[name].args[-1] if name in self._lines else None

    def passes(self, name: str) -> bool:
        """Return whether the client's own header is passed on."""
        value = self.value(name)
        if value is None:
            return self.passes_all
        return value == f"$http_{name.replace('-', '_')}"

    def place(self, name: str) -> str:
        """Return where the header is set, or else the location."""
        return self._lines[name].place if name in self._lines else self._place


def _about_the_client(headers: _Headers) -> Iterator[Finding]:
    address = headers.value("x-forwarded-for")
    if address is None and not headers.passes_all:
        yield wrong(
            PART,
            "Synapse records whoami-router's address as that of the user's device",
            "proxy_set_header X-Forwarded-For $remote_addr;",
            headers.place("x-forwarded-for"),
        )
    elif address is None or "$proxy_add_x_forwarded_for" in address:
        yield note(
            PART,
            "a client chooses, by a header of its own, the address that Synapse records for it",
            "proxy_set_header X-Forwarded-For $remote_addr;",
            headers.place("x-forwarded-for"),
        )
    if not headers.passes("user-agent"):
        yield wrong(
            PART,
            "Synapse records whoami-router as the user's device (User-Agent)",
            "proxy_set_header User-Agent $http_user_agent;",
            headers.place("user-agent"),
        )


# Over which connections.


def _connections(site: Site, asking: Asking) -> Iterator[Finding]:
    location, upstream = asking.location, asking.upstream
    each = "each question opens a connection of its own (before nginx 1.29.7)"
    if _value(location, "proxy_http_version", "") not in ("1.1", "2"):
        yield wrong(PART, each, "proxy_http_version 1.1;", asking.place)
    connection = [
        one
        for one in location.inherited("proxy_set_header")
        if one.args and one.args[0].lower() == "connection"
    ]
    if not connection or connection[-1].args[-1] != "":
        place = connection[-1].place if connection else asking.place
        yield wrong(PART, each, 'proxy_set_header Connection "";', place)
    if upstream is None:
        return
    kept = next(upstream.find("keepalive"), None)
    if kept is None or kept.args[:1] == ("0",):
        place = upstream.place if kept is None else kept.place
        yield wrong(PART, each, "keepalive 32;", place)
    elif any(one.name in _AFTER for one in upstream.children[_index(upstream, kept) :]):
        yield wrong(
            PART,
            f"keepalive is without effect before the line that says how to choose: {each}",
            "hash first, keepalive below it",
            kept.place,
        )
    idle = next(upstream.find("keepalive_timeout"), None)
    idle_seconds = seconds(idle.args[0]) if idle is not None and idle.args else None
    if idle is not None and idle_seconds is not None and idle_seconds >= _IDLE_SECONDS:
        yield wrong(
            PART,
            f"whoami-router closes idle connections after {_IDLE_SECONDS} s: a question in that "
            "moment fails",
            "keepalive_timeout 60s;",
            idle.place,
        )
    yield from _several(site, asking, upstream)


_AFTER = {"hash", "ip_hash", "least_conn", "random"}


def _index(upstream: Directive, wanted: Directive) -> int:
    return next(number for number, one in enumerate(upstream.children) if one is wanted)


def _several(site: Site, asking: Asking, upstream: Directive) -> Iterator[Finding]:
    """With several processes, one token has to go to the same one."""
    if len(primary_servers(upstream)) < 2:  # noqa: PLR2004  (several)
        return
    line = "hash $token_routing_key consistent;"
    hashed = hash_of(upstream)
    if hashed is None or not _by_token(site, asking, hashed.args[0]):
        yield wrong(
            PART,
            "each of these processes asks Synapse about every token",
            f"{line} (of conf.d/maps.conf)",
            upstream.place if hashed is None else hashed.place,
        )
    elif "consistent" not in hashed.args:
        yield note(
            PART,
            "with a process more or less, most tokens go to another one, which does not know them",
            f"hash {hashed.args[0]} consistent;",
            hashed.place,
        )


def _by_token(site: Site, asking: Asking, key: str) -> bool:
    """Return whether requests of a token have a key, and those of another a different one."""
    for by in (Sample.with_token, lambda sample, token: sample.with_query(f"access_token={token}")):
        keys = [
            _asked_text(site, asking, by(sample, token), key)
            for token in ("one", "other")
            for sample in (_SYNC, replace(_SYNC, target="/_matrix/client/v3/sync?since=s2"))
        ]
        if None in keys:
            return True  # it cannot be told
        if "" in keys or keys[0] == keys[2] or (keys[0] != keys[1] and by is Sample.with_token):
            return False
    return True


def _asked_text(site: Site, asking: Asking, sample: Sample, template: str) -> str | None:
    """Return what a text is inside the auth location, None if that is not understood."""
    server = asking.location.server
    assert server is not None  # noqa: S101  (found has looked)
    try:
        walk = Walk(site, server, sample, "")
        walk.enter(asking.location)
        return walk.text(template)
    except Undecided:
        return None


# What happens without an answer.


def _fails_open(site: Site, asking: Asking) -> Iterator[Finding]:
    location = asking.location
    if _value(location, "proxy_intercept_errors", "off") != "on":
        yield wrong(
            PART,
            "an error of whoami-router, or of what is in its place, becomes the client's: a 401 "
            "logs it out",
            "proxy_intercept_errors on;",
            _place(location, "proxy_intercept_errors", asking.place),
        )
    pages = location.inherited("error_page")
    codes: dict[str, Directive] = {}
    for page in pages:
        for code in page.args:
            if code.isdigit():
                codes.setdefault(code, page)
    missing = [code for code in _MUST_FAIL_OPEN if code not in codes]
    if missing:
        yield wrong(
            PART,
            "an error of whoami-router, or its absence, is an error for the client: no error_page "
            f"for {', '.join(missing)}",
            f"{_OPEN}, and location @whoami_router_unavailable {{ return 204; }}",
            pages[0].place if pages else asking.place,
        )
    for page in {
        id(codes[code]): codes[code] for code in _MUST_FAIL_OPEN if code in codes
    }.values():
        problem = _not_open(site, location, page)
        if problem is not None:
            what, remedy = problem
            yield wrong(PART, what, remedy, page.place)
    if "408" in codes:
        yield note(
            PART,
            "nginx drops the client's connection on a 408, intercepted or not",
            "take 408 out of the line",
            codes["408"].place,
        )


def _not_open(site: Site, location: Location, page: Directive) -> tuple[str, str] | None:
    """Return why an ``error_page`` does not end in a 2xx, and the remedy; None if it does."""
    *before, target = page.args
    response = next((one for one in before if one.startswith("=")), None)
    if response is not None and re.fullmatch("=2[0-9]{2}", response):
        return None
    if response is None:
        return (
            "without `=` the client gets the error nevertheless",
            f"error_page ... = {target};",
        )
    server = location.server
    if not target.startswith("@") or server is None:
        return (
            f"whether {target} answers 2xx cannot be told: nothing else lets the request go on",
            f"{_OPEN}, and location @whoami_router_unavailable {{ return 204; }}",
        )
    named = site.named(server, target)
    returns = [] if named is None else [one.args[0] for one in named.directive.find("return")]
    if named is None or not any(re.fullmatch("2[0-9]{2}", status) for status in returns):
        return (
            f"{target} does not answer 204: when whoami-router is away the client gets an error",
            f"location {target} {{ return 204; }}",
        )
    return None


def _waits(asking: Asking, whoami_timeout: float) -> Iterator[Finding]:
    location = asking.location
    reading = seconds(_value(location, "proxy_read_timeout", _DEFAULT_WAIT))
    connecting = seconds(_value(location, "proxy_connect_timeout", _DEFAULT_WAIT))
    if reading is not None and reading > _LONGEST_WAIT:
        yield wrong(
            PART,
            f"a whoami-router that hangs holds each request up for {reading:g} s",
            f"proxy_read_timeout {max(3, int(whoami_timeout) + 1)}s;",
            _place(location, "proxy_read_timeout", asking.place),
        )
    if reading is not None and reading <= whoami_timeout:
        yield wrong(
            PART,
            f"nginx waits {reading:g} s, no longer than whoami-router for Synapse "
            f"(--whoami-timeout {whoami_timeout:g}): its fallbacks come too late",
            f"proxy_read_timeout {int(whoami_timeout) + 1}s;",
            _place(location, "proxy_read_timeout", asking.place),
        )
    if connecting is not None and connecting > _LONGEST_WAIT:
        yield wrong(
            PART,
            f"a whoami-router that takes no connections holds each request up for {connecting:g} s",
            "proxy_connect_timeout 1s;",
            _place(location, "proxy_connect_timeout", asking.place),
        )


def _value(location: Location, name: str, default: str) -> str:
    directives = location.inherited(name)
    return directives[-1].args[0] if directives and directives[-1].args else default


def _place(location: Location, name: str, default: str) -> str:
    directives = location.inherited(name)
    return directives[-1].place if directives else default
