"""Looks at nginx's configuration, and at the router that it asks: what docs/nginx-traps.md says."""

from collections.abc import Iterator
from pathlib import Path

from whoami_router.check.findings import Finding, ok, wrong
from whoami_router.check.nginx import asking, edge_cache, logs, pools, private, unasked
from whoami_router.check.nginx.site import IDENTIFIER_HEADER, PART, Site, auth_request
from whoami_router.nginx_conf import Directive, Location, UnreadableConfiguration, load
from whoami_router.settings import ListenAddress

_INCLUDES = (
    "include snippets/whoami_router.conf; in the server, and include snippets/route_by_user.conf; "
    "in the locations that go to sync workers"
)


_CORRECT = "correct it; nginx -t says more"
_READABLE = "correct the name of the file, or have somebody run this who may read it"

# How many words have to stand behind a directive. Here nginx could not read on, either.
_FEWEST = {
    "auth_request": 1,
    "auth_request_set": 2,
    "error_page": 2,
    "geo": 1,
    "hash": 1,
    "limit_conn_zone": 2,
    "limit_req_zone": 2,
    "location": 1,
    "map": 2,
    "proxy_cache": 1,
    "proxy_cache_key": 1,
    "proxy_cache_path": 2,
    "proxy_pass": 1,
    "proxy_set_header": 2,
    "return": 1,
    "upstream": 1,
}


def look(path: Path, *, whoami_timeout: float, listen: ListenAddress | None) -> list[Finding]:
    """Return what is right and wrong about a configuration.

    ``whoami_timeout``, in seconds, and ``listen`` are those of the router; None if no router is
    looked at.
    """
    try:
        site = Site(load(path))
    except UnreadableConfiguration as exc:
        remedy = _READABLE if isinstance(exc.__cause__, OSError) else _CORRECT
        return [wrong(PART, str(exc).rstrip("."), remedy)]
    if not any(one.name == "http" for one in site.configuration.directives):
        return [
            wrong(
                PART,
                f"{path} is a part of a configuration: what is inherited cannot be seen in it",
                "give the file that nginx reads first, for example /etc/nginx/nginx.conf",
            )
        ]
    incomplete = _incomplete(site.configuration.directives)
    if incomplete is not None:
        what = f"{incomplete.name} is not complete"
        return [wrong(PART, what, _CORRECT, incomplete.place)]
    found = _found(site, whoami_timeout=whoami_timeout, listen=listen)
    return list(dict.fromkeys(found))  # several servers may include the same lines


def _incomplete(directives: tuple[Directive, ...]) -> Directive | None:
    """Return the first directive that lacks what has to stand behind its name."""
    for one in directives:
        if len(one.args) < _FEWEST.get(one.name, 0):
            return one
        # The lines of these are no directives.
        within = None if one.name in ("map", "geo") else _incomplete(one.children)
        if within is not None:
            return within
    return None


def _found(site: Site, *, whoami_timeout: float, listen: ListenAddress | None) -> Iterator[Finding]:
    askers = [one for one in site.locations if _asks_for_users(site, one)]
    yield from _takers(site)
    if not askers:
        yield from _nobody(site)
        return
    told: set[int] = set()
    asking_well = []
    for asker in askers:
        yield from asking.skipped(asker)
        found = asking.found(site, asker)
        if isinstance(found, Finding):
            yield found
            continue
        asking_well.append(asker)
        if id(found.location.directive) not in told:
            told.add(id(found.location.directive))
            yield from asking.look(site, found, whoami_timeout=whoami_timeout, listen=listen)
            yield from edge_cache.look(site, found)
    of_pools = list(pools.look(site, asking_well))
    yield from of_pools
    yield from unasked.look(site, askers, told={one.place for one in of_pools})
    servers = {id(one.server) for one in askers}
    yield from pools.missing_pools(
        site, [one for one in site.locations if id(one.server) in servers]
    )
    logged = [finding for asker in askers for finding in logs.look(site, asker)]
    yield from logged or [ok(PART, "no log shows a token")]
    yield from private.look(site, askers)


def _asks_for_users(site: Site, location: Location) -> bool:
    """Return whether a location asks who the user is, and not something else of somebody else."""
    if location.server is None or auth_request(location) is None:
        return False
    if not any(one.name in ("proxy_pass", "auth_request") for one in location.directive.children):
        return False
    asked = site.auth_location(location)
    if asked is not None and asked.directive is location.directive:
        return False  # it inherits this from its server
    taken = {
        word.lower() for one in location.inherited("auth_request_set") for word in one.args[1:]
    }
    if any(word.endswith(f"http_{IDENTIFIER_HEADER}") for word in taken):
        return True
    return asked is not None and _is_ours(asked)


def _is_ours(location: Location) -> bool:
    targets = [one.args[0] for one in location.directive.find("proxy_pass") if one.args]
    return any(text.endswith("/resolve") or "whoami_router" in text for text in targets)


def _takers(site: Site) -> Iterator[Finding]:
    """Yield locations that take an answer and ask nobody."""
    for location in site.locations:
        if unasked.asks_nothing(location):
            yield wrong(
                PART,
                "an answer is taken here, and nobody is asked for it: nothing goes by user",
                "auth_request /_whoami_router/resolve;",
                location.inherited("auth_request_set")[0].place,
            )


def _nobody(site: Site) -> Iterator[Finding]:
    hashed = [
        line
        for upstream in site.configuration.upstreams
        for line in upstream.find("hash")
        if any(f"http_{IDENTIFIER_HEADER}" in word.lower() for word in line.args)
    ]
    for line in hashed:
        yield wrong(
            PART, "a client chooses its worker by a header of its own", _INCLUDES, line.place
        )
    yield wrong(PART, "no location asks whoami-router whose request it is", _INCLUDES)
