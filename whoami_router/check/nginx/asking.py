"""The location where nginx asks whoami-router: whom it asks, and over which connections."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from whoami_router.check.findings import Finding, note, ok, wrong
from whoami_router.check.nginx import fails_open, reached, told
from whoami_router.check.nginx.site import (
    PART,
    Sample,
    Site,
    Target,
    Walk,
    auth_request,
    hash_of,
    modifier_and_path,
    parse_target,
    primary_servers,
    seconds,
    value,
)
from whoami_router.nginx_conf import Directive, Location
from whoami_router.nginx_maps import Undecided
from whoami_router.settings import Inherited, ListenAddress, Tcp, Unix

# So long whoami-router keeps an idle connection.
_IDLE_SECONDS = 75

_SNIPPET = "snippets/whoami_router.conf"

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
        *told.look(site, asking.location),
        *_connections(site, asking),
        *fails_open.look(site, asking.location, whoami_timeout=whoami_timeout),
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


# Over which connections.


def _connections(site: Site, asking: Asking) -> Iterator[Finding]:
    location, upstream = asking.location, asking.upstream
    each = "each question opens a connection of its own (before nginx 1.29.7)"
    if value(location, "proxy_http_version", "") not in ("1.1", "2"):
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
