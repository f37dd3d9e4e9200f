"""Requests that go where those of a user belong together, and nobody is asked about them."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.nginx.samples import ALL_SYNCS, OTHER_PATHS, SYNC, SYNCS
from whoami_router.check.nginx.site import (
    IDENTIFIER_HEADER,
    PART,
    Sample,
    Site,
    modifier_and_path,
    primary_servers,
)
from whoami_router.nginx_conf import Location
from whoami_router.nginx_maps import Undecided

_INCLUDE = "include snippets/route_by_user.conf; in the location that they go to"


def ways_past(site: Site, askers: Sequence[Location], pools: Collection[str]) -> Iterator[Finding]:
    """Yield syncs that nobody asks about though they should be; ``pools`` are for those asked."""
    for server in {id(one.server): one.server for one in askers}.values():
        assert server is not None  # noqa: S101  (those who ask are in one)
        arrivals = {}
        for sample in SYNCS:
            with suppress(Undecided):
                arrivals[sample.what] = (sample, site.walk(server, sample.with_token("t"), "alice"))
        asked = any(arrival.asked is not None for _, arrival in arrivals.values())
        by_user: dict[tuple[str, str], bool] = defaultdict(bool)
        past: dict[tuple[str, str], list[Sample]] = {}
        for sample, arrival in arrivals.values():
            if arrival.location is None or arrival.asked is not None:
                continue
            place = arrival.location.directive.place
            if arrival.status is not None:
                yield (wrong if sample is SYNC else note)(
                    PART,
                    f"{_which(sample)} is answered {arrival.status} by nginx itself",
                    "let it go to a location that is proxied",
                    place,
                )
            elif arrival.target is not None:
                name = arrival.target.name
                if _has_several(site, name) or (sample is SYNC and not asked):
                    past.setdefault((place, name), []).append(sample)
                by_user[place, name] |= _goes_by_user(site, arrival.location, sample)
        for (place, name), samples in past.items():
            say = wrong if SYNC in samples or name in pools or by_user[place, name] else note
            yield say(PART, _without_user(samples, name), _INCLUDE, place)


def _which(sample: Sample) -> str:
    return f"{sample.what} ({sample.method} {sample.target.partition('?')[0]})"


def _without_user(samples: Sequence[Sample], name: str) -> str:
    which = " and ".join(map(_which, samples))
    one = len(samples) == 1
    return f"{which} {'goes' if one else 'go'} to {name} without {'its' if one else 'their'} user"


def _has_several(site: Site, name: str) -> bool:
    upstream = site.upstreams.get(name)
    return upstream is not None and len(primary_servers(upstream)) > 1


def look(
    site: Site, askers: Sequence[Location], *, told: Collection[str | None]
) -> Iterator[Finding]:
    """Yield the locations, in any server, from which requests go by user and nobody asks.

    ``told`` are the places of those about which enough is said.
    """
    asking = {id(one.directive) for one in askers}
    for location in site.locations:
        place = location.directive.place
        if id(location.directive) in asking or place in told or location.server is None:
            continue
        for samples, say in ((ALL_SYNCS, wrong), (_of_other_kinds(location), note)):
            unknown = [
                (one, name)
                for one in samples
                if (name := _pool_by_user(site, location, one)) is not None
            ]
            if unknown:
                sample, name = unknown[0]
                yield say(PART, _without_user([sample], name), _INCLUDE, place)
                break


def _of_other_kinds(location: Location) -> list[Sample]:
    """Return requests of which one may come to a location."""
    modifier, path = modifier_and_path(location)
    own = [] if modifier in ("~", "~*") or not path.startswith("/") else [path]
    return [Sample("a request", "GET", one) for one in (*own, *OTHER_PATHS)]


def _pool_by_user(site: Site, location: Location, sample: Sample) -> str | None:
    """Return the pool that a request goes to from this location, if that is chosen by user."""
    server = location.server
    assert server is not None  # noqa: S101  (who asks has looked)
    try:
        arrival = site.walk(server, sample.with_token("t"))
    except Undecided:
        return None
    if arrival.location is None or arrival.location.directive is not location.directive:
        return None
    if arrival.target is None or not _has_several(site, arrival.target.name):
        return None
    return arrival.target.name if _goes_by_user(site, location, sample) else None


def _goes_by_user(site: Site, location: Location, sample: Sample) -> bool:
    """Return whether another user's request had another key, if users were known here."""
    users = {
        one.args[0].removeprefix("$").lower()
        for one in site.configuration.every
        if one.name == "auth_request_set"
        and len(one.args) == 2  # noqa: PLR2004  (variable, value)
        and one.args[1].lower().endswith(f"_http_{IDENTIFIER_HEADER}")
    }
    try:
        one, other = (
            site.walk_from(
                location, sample.with_token("t"), answered=dict.fromkeys(users, name)
            ).key
            for name in ("alice", "bob")
        )
    except Undecided:
        return False
    return one != other


def asks_nothing(location: Location) -> bool:
    """Return whether a location takes an answer that nobody gives."""
    taken = [
        one
        for one in location.directive.find("auth_request_set")
        if one.args[-1].lower().endswith(f"_http_{IDENTIFIER_HEADER}")
    ]
    return bool(taken) and not location.inherited("auth_request")
