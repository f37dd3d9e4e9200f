"""How requests that were asked about are passed on to Synapse."""

from collections.abc import Iterator

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.nginx.site import PART, Site, error_page, primary_servers, seconds
from whoami_router.nginx_conf import Directive, Location

# Between nginx and whoami-router only.
_OURS = ("X-User-Identifier", "X-User-Identifier-Source")
# What Synapse believes nginx, and nobody else.
_CLIENTS = {"Host": "$host", "X-Forwarded-For": "$remote_addr", "X-Forwarded-Proto": "$scheme"}

# Twisted, under Synapse, closes a connection that was idle for so long.
_IDLE_SECONDS = 60


def look(site: Site, location: Location) -> Iterator[Finding]:
    """Yield what is wrong about how a location passes requests on."""
    yield from _to_synapse(location)
    yield from _errors_of_others(site, location)


def to_pool(location: Location, upstream: Directive) -> Iterator[Finding]:
    """Yield what is wrong about how a location and an upstream belong together."""
    yield from _kept(location, upstream)
    yield from _started_twice(location, upstream)


def _to_synapse(location: Location) -> Iterator[Finding]:
    lines = [one for one in location.inherited("proxy_set_header") if one.args]
    headers = {one.args[0].lower(): one.args[-1] for one in lines}
    place = lines[0].place if lines else next(location.directive.find("proxy_pass")).place
    if not any(one.args == ("off",) for one in location.inherited("proxy_pass_request_headers")):
        own = [name for name in _OURS if headers.get(name.lower()) != ""]
        if own:
            yield note(
                PART,
                f"clients' own headers reach Synapse: {', '.join(own)}",
                " ".join(f'proxy_set_header {name} "";' for name in own),
                place,
            )
    missing = [name for name in _CLIENTS if name.lower() not in headers]
    if missing:
        yield note(
            PART,
            f"Synapse does not hear from nginx who the client is, and whom it asked for: "
            f"{', '.join(missing)}",
            " ".join(f"proxy_set_header {name} {_CLIENTS[name]};" for name in missing),
            place,
        )


def _kept(location: Location, upstream: Directive) -> Iterator[Finding]:
    """Say what is half done about connections that stay; who wants none has none of the three."""
    version = location.inherited("proxy_http_version")
    connection = next(
        (
            one
            for one in location.inherited("proxy_set_header")
            if one.args and one.args[0].lower() == "connection"
        ),
        None,
    )
    kept = next(upstream.find("keepalive"), None)
    lines = {
        "keepalive 32;": (kept, upstream.place),
        "proxy_http_version 1.1;": (version[-1] if version else None, location.directive.place),
        'proxy_set_header Connection "";': (connection, location.directive.place),
    }
    missing = {line: place for line, (found, place) in lines.items() if found is None}
    if len(missing) < len(lines):
        for line, place in missing.items():
            yield note(
                PART,
                "each request to Synapse opens a connection of its own (before nginx 1.29.7)",
                line,
                place,
            )
    if kept is None:
        return
    idle = next(upstream.find("keepalive_timeout"), None)
    idle_seconds = seconds(idle.args[0]) if idle is not None and idle.args else _IDLE_SECONDS
    if idle_seconds is not None and idle_seconds >= _IDLE_SECONDS:
        yield note(
            PART,
            f"{upstream.args[0]}: Synapse closes idle connections after {_IDLE_SECONDS} s, and a "
            "POST in that moment fails",
            "keepalive_timeout 30s;",
            kept.place if idle is None else idle.place,
        )


def _started_twice(location: Location, upstream: Directive) -> Iterator[Finding]:
    def limit(name: str, default: str) -> tuple[float, str]:
        found = location.inherited(name)
        text = found[-1].args[0] if found and found[-1].args else default
        return seconds(text) or 0, found[-1].place if found else location.directive.place

    next_of = location.inherited("proxy_next_upstream")
    causes = next_of[-1].args if next_of else ("error", "timeout")
    until, place = limit("proxy_next_upstream_timeout", "0")
    reading, _ = limit("proxy_read_timeout", "60s")
    if len(primary_servers(upstream)) > 1 and "timeout" in causes and not 0 < until < reading:
        yield note(
            PART,
            f"a sync that takes longer than {reading:g} s (proxy_read_timeout) is started again on "
            "another worker",
            f"proxy_next_upstream_timeout {min(30, max(1, int(reading) // 2))}s;",
            place,
        )


def _errors_of_others(site: Site, location: Location) -> Iterator[Finding]:
    """Say that a location that an error page leads to has none of its own, but for one line."""
    name = location.directive.args[0] if location.directive.args else ""
    server = location.server
    if not name.startswith("@") or server is None:
        return
    leads = any(
        page.args[-1] == name
        for one in (server, *(each.directive for each in site.of_server(server)))
        for page in one.find("error_page")
        if page.args
    )
    recursive = location.inherited("recursive_error_pages")
    if leads and error_page(location, 502) and (not recursive or recursive[-1].args != ("on",)):
        yield wrong(
            PART,
            f"error pages do not count in {name}, which one led to: when its workers are away "
            "clients get nginx's HTML",
            "recursive_error_pages on;",
            location.directive.place,
        )
