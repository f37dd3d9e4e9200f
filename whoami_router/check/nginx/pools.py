"""Where requests go that are asked about: pools that are hashed by the user, and how."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from whoami_router.check.findings import Finding, note, ok, wrong
from whoami_router.check.nginx import passed_on, unasked
from whoami_router.check.nginx.samples import SYNC, SYNCS
from whoami_router.check.nginx.site import (
    IDENTIFIER_HEADER,
    PART,
    Arrival,
    Sample,
    Site,
    depends_on,
    hash_of,
    primary_servers,
)
from whoami_router.nginx_conf import Directive, Location
from whoami_router.nginx_maps import Undecided, variables

_MESSAGES = Sample("a room's messages", "GET", "/_matrix/client/v3/rooms/!{}:h/messages?dir=b")
_SEND = Sample("a transaction", "PUT", "/_matrix/federation/v1/send/{}")

_ONE, _OTHER = "192.0.2.1", "192.0.2.2"

_KEY = "$sync_routing_key"
_HASH = f"hash {_KEY} consistent; (of conf.d/maps.conf)"


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
        yield from passed_on.look(site, location)
        for sample in [] if unset else _arriving(site, location):
            found = _pool(site, location, sample)
            if isinstance(found, _Pool):
                pools.setdefault(found.name, found)
            elif found is not None:
                yield found
    yield from _of_pools(site, pools.values())
    yield from unasked.ways_past(site, askers, pools)
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
        yield from passed_on.to_pool(pool.location, pool.upstream)
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


# What else belongs together.


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
