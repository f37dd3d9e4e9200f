"""Where requests go that are asked about: pools that are hashed by the user, and how."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from whoami_router.check.findings import Finding, note, ok, wrong
from whoami_router.check.nginx.site import (
    IDENTIFIER_HEADER,
    PART,
    Arrival,
    Sample,
    Site,
    depends_on,
    error_page,
    hash_of,
    modifier_and_path,
    primary_servers,
    seconds,
)
from whoami_router.nginx_conf import Directive, Location
from whoami_router.nginx_maps import Undecided, variables

SYNC = Sample("a sync", "GET", "/_matrix/client/v3/sync?since=s1&timeout=30000")
_INITIAL = Sample("an initial sync", "GET", "/_matrix/client/v3/sync")
_SLIDING = Sample(
    "a sliding sync",
    "POST",
    "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1",
)
SYNCS = (SYNC, _INITIAL, _SLIDING)

# What else is a sync, of which a location may be made.
_ALL_SYNCS = (
    *SYNCS,
    Sample("an old client's sync", "GET", "/_matrix/client/r0/sync?since=s1"),
    Sample("an old client's sync", "GET", "/_matrix/client/r0/events?from=s1"),
    Sample("an old client's sync", "GET", "/_matrix/client/v3/events?from=s1"),
)
# Other requests, to try which location they have.
_OTHER_PATHS = (
    "/",
    "/_matrix/client/versions",
    "/_matrix/client/v3/account/whoami",
    "/_matrix/client/v3/keys/query",
    "/_matrix/client/v3/pushrules/",
    "/_matrix/client/v3/rooms/!r:h/messages",
    "/_matrix/client/v3/rooms/!r:h/state",
    "/_matrix/client/v3/user/@u:h/account_data/x",
    "/_matrix/client/v3/presence/@u:h/status",
    "/_matrix/client/v3/profile/@u:h",
)

_MESSAGES = Sample("a room's messages", "GET", "/_matrix/client/v3/rooms/!{}:h/messages?dir=b")
_SEND = Sample("a transaction", "PUT", "/_matrix/federation/v1/send/{}")

_ONE, _OTHER = "192.0.2.1", "192.0.2.2"

_INCLUDE = "include snippets/route_by_user.conf; in the location that they go to"

_KEY = "$sync_routing_key"
_HASH = f"hash {_KEY} consistent; (of conf.d/maps.conf)"

# Between nginx and whoami-router only.
_OURS = ("X-User-Identifier", "X-User-Identifier-Source")
# What Synapse believes nginx, and nobody else.
_CLIENTS = {"Host": "$host", "X-Forwarded-For": "$remote_addr", "X-Forwarded-Proto": "$scheme"}

# Twisted, under Synapse, closes a connection that was idle for so long.
_IDLE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Pool:
    """An upstream to which requests go that are asked about, from a location."""

    location: Location
    sample: Sample
    upstream: Directive

    @property
    def name(self) -> str:
        return self.upstream.args[0]

    @property
    def servers(self) -> list[str]:
        return primary_servers(self.upstream)


def look(site: Site, askers: Sequence[Location]) -> Iterator[Finding]:
    """Yield what is right and wrong about where the requests go that are asked about."""
    pools: dict[str, _Pool] = {}
    for location in askers:
        if not any(location.directive.find("proxy_pass")):
            yield note(
                PART,
                "where the requests go that are asked about here cannot be told: there is no "
                "proxy_pass beside auth_request",
                place=location.directive.place,
            )
            continue
        unset = list(_set(location))
        yield from unset
        yield from _to_synapse(location)
        yield from _errors_of_others(site, location)
        for sample in [] if unset else _arriving(site, location):
            found = _pool(site, location, sample)
            if isinstance(found, _Pool):
                pools.setdefault(found.name, found)
            elif found is not None:
                yield found
    yield from _of_pools(site, pools.values())
    yield from _ways_past(site, askers, pools)
    yield from _others(site, askers)


def _of_pools(site: Site, pools: Iterable[_Pool]) -> Iterator[Finding]:
    well: list[str] = []
    single: list[str] = []
    for pool in pools:
        findings = list(_by_user(site, pool))
        if len(pool.servers) == 1 and not findings:
            single.append(pool.name)
        elif not findings:
            well.append(f"{pool.name} ({len(pool.servers)} servers)")
        yield from findings
        yield from _kept(pool)
        yield from _started_twice(pool)
    if well:
        yield ok(PART, f"syncs go by user: {', '.join(well)}")
    if single:
        yield note(PART, f"one server only, nothing to choose: {', '.join(single)}")


def missing_pools(site: Site, locations: Sequence[Location]) -> Iterator[Finding]:
    """Yield the names in maps that are to be upstreams and are none."""
    told = set()
    for location in locations:
        for passed in location.directive.find("proxy_pass"):
            name = passed.args[0].removeprefix("http://").partition("/")[0] if passed.args else ""
            if variables(name) != [name.removeprefix("$").lower()] or name in told:
                continue
            told.add(name)
            block = site.configuration.maps.get(name.removeprefix("$").lower())
            for row in block.children if block is not None else ():
                pool = row.args[0] if row.args else ""
                plain = bool(pool) and not set("$:.") & set(pool)
                if plain and pool not in site.upstreams and pool != "localhost":
                    yield wrong(
                        PART,
                        f"there is no upstream {pool}: requests of {row.name} are answered 503",
                        f"delete the line, or upstream {pool} {{ ... }}",
                        row.place,
                    )


# What is known of the user.


def _set(location: Location) -> Iterator[Finding]:
    lines = location.inherited("auth_request_set")
    line = f"auth_request_set $user_identifier $upstream_http_{IDENTIFIER_HEADER};"
    values = {one.args[-1].lower() for one in lines if one.args}
    good = {f"$upstream_http_{IDENTIFIER_HEADER}", f"$sent_http_{IDENTIFIER_HEADER}"}
    if values & good:
        return
    if f"$http_{IDENTIFIER_HEADER}" in values:
        what = "this is the client's own header: it chooses its worker itself"
    else:
        what = "nothing is taken from whoami-router's answer, so no request goes by user"
    place = lines[0].place if lines else location.inherited("auth_request")[-1].place
    yield wrong(PART, what, line, place)


# Which pool it is.


def _arriving(site: Site, location: Location) -> list[Sample]:
    """Return the syncs that this location handles; the usual one if none is known to."""
    server = location.server
    assert server is not None  # noqa: S101  (those who ask are in one)
    arriving = []
    for sample in SYNCS:
        try:
            arrival = site.walk(server, sample.with_token("t"), "alice")
        except Undecided:
            continue
        if arrival.location is not None and arrival.location.directive is location.directive:
            arriving.append(sample)
    return arriving or [SYNC]


def _pool(site: Site, location: Location, sample: Sample) -> _Pool | Finding | None:
    passed = next(location.directive.find("proxy_pass"))
    try:
        arrival = site.walk_from(location, sample.with_token("t"), "alice")
    except Undecided as exc:
        return note(
            PART, f"where requests go cannot be told: it depends on {exc}", None, passed.place
        )
    if arrival.target is None:
        what = f"where requests go cannot be told: {passed.args[0]} is nothing known"
        return note(PART, what, None, passed.place)
    upstream = site.upstreams.get(arrival.target.name)
    if upstream is None:
        if "$" in passed.args[0]:
            return None  # missing_pools says it better
        return note(
            PART,
            f"{arrival.target.name} is no upstream block: nothing is chosen by user",
            f"upstream synapse_sync {{ hash {_KEY} consistent; server ...; }}",
            passed.place,
        )
    return _Pool(location, sample, upstream)


# Whether it is by user.


def _by_user(site: Site, pool: _Pool) -> Iterator[Finding]:
    if len(pool.servers) < 2:  # noqa: PLR2004  (there is nothing to choose)
        return
    hashed = hash_of(pool.upstream)
    if hashed is None:
        yield wrong(
            PART,
            f"{pool.name} is not hashed: a user's requests go to all its servers",
            _HASH,
            pool.upstream.place,
        )
        return
    try:
        problem = _key_problem(site, pool, hashed)
    except Undecided as exc:
        what = f"whether {pool.name} is hashed by the user cannot be told: it depends on {exc}"
        yield note(PART, what, None, hashed.place)
        return
    if problem is not None:
        yield _about_key(site, pool, hashed, problem)
        return
    if "consistent" not in hashed.args:
        yield wrong(
            PART,
            f"{pool.name}: with a worker more or less, nearly all users move to another one",
            f"hash {hashed.args[0]} consistent;",
            hashed.place,
        )
    problem = _fallback_problem(site, pool)
    if problem is not None:
        yield _about_key(site, pool, hashed, problem)


def _about_key(site: Site, pool: _Pool, hashed: Directive, problem: str) -> Finding:
    block = site.configuration.maps.get(_KEY.removeprefix("$"))
    ours = depends_on(site, hashed.args[0], _KEY.removeprefix("$"))
    if block is not None and ours:
        remedy = f"the maps of {_KEY} as conf.d/maps.conf has them (whoami-router nginx-files)"
        if problem == _EARLY:
            remedy = "another key for the limit or condition, for example $binary_remote_addr"
        return wrong(PART, f"{hashed.args[0]} {problem}", remedy, block.place)
    return wrong(PART, f"{pool.name}: {hashed.args[0]} {problem}", _HASH, hashed.place)


_EARLY = (
    "is used before whoami-router is asked (by a limit, by an if), and keeps the value that it has "
    "then: nothing goes by user"
)


def _key_problem(site: Site, pool: _Pool, hashed: Directive) -> str | None:
    """Return why a pool is not hashed by the user, None if it is; raises Undecided."""

    def key(identifier: str, token: str, **headers: str) -> str | None:
        sample = replace(pool.sample, headers=headers).with_token(token)
        return site.walk_from(pool.location, sample, identifier).key

    alice, again, bob = key("alice", "a"), key("alice", "b"), key("bob", "c")
    if alice != key("alice", "a", **{"x-user-identifier": "mallory"}):
        return "is a client's own header: the client chooses its worker"
    if alice == again != bob:
        return None
    if _taken_before(site, pool):
        return _EARLY
    if alice != again:
        return "is of the token, so each device of a user has another worker"
    answers = (f"upstream_http_{IDENTIFIER_HEADER}", f"sent_http_{IDENTIFIER_HEADER}")
    return (
        "is empty here: the answer is known only where auth_request_set is"
        if any(depends_on(site, hashed.args[0], name) for name in answers)
        else "does not depend on the user that whoami-router names"
    )


def _taken_before(site: Site, pool: _Pool) -> bool:
    """Return whether the key were the user's if nothing used it before the question."""
    keys = [
        site.walk_from(pool.location, pool.sample.with_token(token), user, question_first=True).key
        for user, token in (("alice", "a"), ("alice", "b"), ("bob", "c"))
    ]
    return keys[0] == keys[1] != keys[2]


def _fallback_problem(site: Site, pool: _Pool) -> str | None:
    """Return what happens to requests about which the router says nothing."""
    ways: tuple[tuple[str, Callable[[Sample, str], Sample]], ...] = (
        ("in the header", Sample.with_token),
        ("in the query", lambda sample, token: sample.with_query(f"access_token={token}")),
    )
    for where, by in ways:
        try:
            one, again, other = (
                site.walk_from(pool.location, replace(by(pool.sample, token), address=address)).key
                # Another token of another client: a key by the address does, too.
                for token, address in (("one", _ONE), ("one", _ONE), ("other", _OTHER))
            )
        except Undecided:
            return None
        if one == other or one != again:
            return (
                "is the same for all, or empty, while whoami-router does not answer: requests with "
                f"a token {where} do not keep their worker"
            )
    return None


# How it is passed on.


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


def _kept(pool: _Pool) -> Iterator[Finding]:
    """Say what is half done about connections that stay; who wants none has none of the three."""
    location = pool.location
    version = location.inherited("proxy_http_version")
    connection = next(
        (
            one
            for one in location.inherited("proxy_set_header")
            if one.args and one.args[0].lower() == "connection"
        ),
        None,
    )
    kept = next(pool.upstream.find("keepalive"), None)
    lines = {
        "keepalive 32;": (kept, pool.upstream.place),
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
    idle = next(pool.upstream.find("keepalive_timeout"), None)
    idle_seconds = seconds(idle.args[0]) if idle is not None and idle.args else _IDLE_SECONDS
    if idle_seconds is not None and idle_seconds >= _IDLE_SECONDS:
        yield note(
            PART,
            f"{pool.name}: Synapse closes idle connections after {_IDLE_SECONDS} s, and a POST in "
            "that moment fails",
            "keepalive_timeout 30s;",
            kept.place if idle is None else idle.place,
        )


def _started_twice(pool: _Pool) -> Iterator[Finding]:
    location = pool.location

    def limit(name: str, default: str) -> tuple[float, str]:
        found = location.inherited(name)
        text = found[-1].args[0] if found and found[-1].args else default
        return seconds(text) or 0, found[-1].place if found else location.directive.place

    next_of = location.inherited("proxy_next_upstream")
    causes = next_of[-1].args if next_of else ("error", "timeout")
    until, place = limit("proxy_next_upstream_timeout", "0")
    reading, _ = limit("proxy_read_timeout", "60s")
    if len(pool.servers) > 1 and "timeout" in causes and not 0 < until < reading:
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


# Requests that do not come by here.


def _ways_past(site: Site, askers: Sequence[Location], pools: Collection[str]) -> Iterator[Finding]:
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


def unasked(
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
        for samples, say in ((_ALL_SYNCS, wrong), (_of_other_kinds(location), note)):
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
    return [Sample("a request", "GET", one) for one in (*own, *_OTHER_PATHS)]


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


@dataclass(frozen=True, slots=True)
class _Together:
    """Two requests that belong to one worker, and what happens if they reach two."""

    one: Sample
    other: Sample
    say: Callable[..., Finding]
    what: str
    remedy: str


_TOGETHER = (
    _Together(
        replace(_MESSAGES, target=_MESSAGES.target.format("room"), address=_ONE),
        replace(_MESSAGES, target=_MESSAGES.target.format("room"), address=_OTHER),
        wrong,
        "two workers page through one room, which Synapse does not allow",
        "hash by the room ($room_routing_key of conf.d/routes.conf)",
    ),
    _Together(
        replace(_SEND, target=_SEND.target.format("1"), address=_ONE),
        replace(_SEND, target=_SEND.target.format("2"), address=_ONE),
        note,
        "transactions of one server go to several workers, against Synapse's advice",
        "hash by $remote_addr",
    ),
)


def _others(site: Site, askers: Sequence[Location]) -> Iterator[Finding]:
    """Yield what else has to go to one worker of several."""
    for server in {id(one.server): one.server for one in askers}.values():
        assert server is not None  # noqa: S101  (those who ask are in one)
        for both in _TOGETHER:
            try:
                one = site.walk(server, both.one.with_token("a"), "alice")
                other = site.walk(server, both.other.with_token("b"), "bob")
            except Undecided:
                continue
            upstream = _same_upstream(site, (one, other))
            if upstream is None or len(primary_servers(upstream)) < 2:  # noqa: PLR2004
                continue
            if not one.key or one.key != other.key:
                yield both.say(
                    PART, f"{upstream.args[0]}: {both.what}", both.remedy, upstream.place
                )


def _same_upstream(site: Site, arrivals: Sequence[Arrival]) -> Directive | None:
    names = {arrival.target.name if arrival.target else None for arrival in arrivals}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else site.upstreams.get(name)


def asks_nothing(location: Location) -> bool:
    """Return whether a location takes an answer that nobody gives."""
    taken = [
        one
        for one in location.directive.find("auth_request_set")
        if one.args[-1].lower().endswith(f"_http_{IDENTIFIER_HEADER}")
    ]
    return bool(taken) and not location.inherited("auth_request")
