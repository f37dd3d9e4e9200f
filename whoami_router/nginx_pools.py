"""Which upstreams an nginx configuration sends requests to by user; pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from whoami_router.nginx_conf import Configuration, Directive, Location
from whoami_router.nginx_maps import Maps, Request, Undecided, variables
from whoami_router.ring import Server

# Stands for the identifier where anybody's will do. No header holds a NUL.
_ANYONE = "\0anyone\0"

_IDENTIFIER = "$upstream_http_x_user_identifier"
_USER = "user_identifier"
_GROUP = "endpoint_group"

# A part of a configuration may lack the maps that its hash lines name. These are those of
# nginx/conf.d/maps.conf, the user, and of routes.conf, the user for these groups.
_USER_KEY = "sync_routing_key"
_GROUP_KEY = "routing_key"
GROUPS_BY_USER = ("sync", "initial_sync", "account_data_read", "push_rules_read")

# Of these the last one in an upstream counts.
_METHODS = {"hash", "ip_hash", "least_conn", "least_time", "random", "sticky"}

_FLAGS = {"backup", "down", "drain", "resolve"}
_NUMBERS = {"weight", "max_conns", "max_fails", "fail_timeout", "slow_start", "service", "route"}

# What may follow the upstream in proxy_pass, and has no part in choosing it.
_URI = re.compile(
    r"(?:/|\$(?:request_uri|uri|is_args|args)\b|\$\{(?:request_uri|uri)\}).*", re.DOTALL
)

# In nginx's files these are no part of a word.
_SPECIAL = set(";{}\"'")

# nginx takes more, and 160 points of memory for each.
HEAVIEST = 10_000


class NoAnswer(Exception):  # noqa: N818  (the name says the consequence)
    """The configuration does not say where users go; one line with the reason and the remedy."""


class Key:
    """What a pool is hashed by, for each user."""

    def __init__(self, source: "_Source", template: str, group: str | None) -> None:
        self._source, self._template, self._group = source, template, group
        request = source.request(_ANYONE, group)
        self._around = request.text(template).split(_ANYONE)
        # Whether maps treat all users the same.
        self._plain = not any(_ANYONE in text for text in request.compared)

    @property
    def is_identifier(self) -> bool:
        """Whether it is each user's identifier and nothing else."""
        return self._plain and self._around == ["", ""]

    def of(self, identifier: str) -> str:
        """Return the key of a user; raises Undecided if it depends on more than that."""
        if self._plain:
            return identifier.join(self._around)
        return self._source.request(identifier, self._group).text(self._template)


@dataclass(frozen=True, slots=True)
class Pool:
    """An upstream to which requests go by user, with its servers as they are written.

    ``groups`` are the groups of endpoints that go there, ``locations`` the locations that name it.
    """

    name: str
    servers: tuple[Server, ...]
    key: Key
    groups: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """The pools that go by user, and what an administrator should know about the others."""

    pools: tuple[Pool, ...]
    notes: tuple[str, ...]


def survey(configuration: Configuration, only: Sequence[str] = ()) -> Survey:
    """Return the pools that go by user, in the order of the file; raises NoAnswer if none does.

    ``only`` are the names of the upstreams that are wanted; all, if there are none.
    """
    upstreams = _upstreams(configuration, only)
    source = _Source(configuration)
    destinations = _destinations(configuration, source)
    pools: list[Pool] = []
    notes: list[str] = []
    for upstream in upstreams:
        destination = destinations.get(upstream.args[0].lower(), _Destination())
        try:
            found = _pools(upstream, source, destination)
        except _NotByUser as exc:
            if exc.unexpected or only:
                notes.append(str(exc))
            continue
        pools += found
        if configuration.whole and not (destination.groups or destination.locations):
            notes.append(
                f"No location is seen to go to {upstream.args[0]} ({upstream.place}), which is "
                "hashed by the user."
            )
    if not pools:
        raise NoAnswer(
            " ".join(notes)
            or f"No upstream of {configuration.path} is hashed by the user. Write in that of the "
            f"workers: {source.remedy}"
        )
    notes += source.notes()
    return Survey(tuple(pools), tuple(notes))


def server(words: Sequence[str]) -> Server:
    """Return what nginx makes of ``server`` and these words after it.

    Raises ValueError, worded for the administrator.
    """
    if not words:
        raise ValueError("needs host:port or unix:/path")
    if any(set(word) & _SPECIAL for word in words):
        raise ValueError("needs host:port or unix:/path, and none of ; { } or quotes")
    text, *parameters = words
    weight = 1
    for parameter in parameters:
        name, sign, value = parameter.partition("=")
        if parameter not in _FLAGS and not (sign and name in _NUMBERS):
            raise ValueError(f"has no parameter {parameter}; is a ; missing?")
        if name == "weight":
            weight = server_weight(value)
    down = "down" in parameters or "drain" in parameters
    return Server(text, weight, down=down, backup="backup" in parameters)


def server_weight(text: str) -> int:
    """Return the weight of a server; raises ValueError, worded for the administrator."""
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise ValueError("needs a weight of 1 or more, for example weight=2")
    return int(text)


def refuse_heavy(servers: Sequence[Server]) -> None:
    """Raise ValueError, worded for the administrator, if the ring would be too large."""
    total = sum(one.weight for one in servers if not one.backup)
    if total > HEAVIEST:
        raise ValueError(
            f"has weights of {total:,} in all, and nginx keeps 160 points for each unit: divide "
            f"them, so that they are {HEAVIEST:,} or less"
        )


class _NotByUser(Exception):  # noqa: N818  (the name says the consequence)
    """An upstream does not go by user, or in a way that says too little; which may be meant so."""

    def __init__(self, reason: str, *, unexpected: bool) -> None:
        super().__init__(reason)
        self.unexpected = unexpected


class _Source:
    """What the variables of a configuration are, for a user and a group of endpoints."""

    def __init__(self, configuration: Configuration) -> None:
        self._path = configuration.path
        self._maps = Maps(configuration.maps)
        self._taken_from_ours: set[str] = set()
        self._users = {
            one.args[0].removeprefix("$").lower() for one in configuration.every if _takes_user(one)
        }
        # What a part of a configuration lacks may be in the others.
        self._missing = set()
        if not configuration.whole:
            self._users = self._users or {_USER}
            self._missing = {name for name in (_USER_KEY, _GROUP_KEY) if name not in self._maps}
        if not self._users:
            raise NoAnswer(
                f"{self._path} never asks whoami-router: no auth_request_set takes {_IDENTIFIER}. "
                "Include snippets/route_by_user.conf in the locations that go by user."
            )
        self.groups = self._maps.mentioned(_GROUP)

    def request(self, identifier: str, group: str | None) -> Request:
        """Return the variables of a request of this user, and of this group if it is not None."""
        known = dict.fromkeys(self._users, identifier)
        if group is not None:
            known[_GROUP] = group
        if _USER_KEY in self._missing:
            known[_USER_KEY] = identifier
        if _GROUP_KEY in self._missing and group is not None:
            known[_GROUP_KEY] = identifier if group in GROUPS_BY_USER else ""
        return self._maps.request(known)

    def tables(self, names: set[str]) -> list[str]:
        """Return the variables that become one of these names, as the table of pools does."""
        return [name for name in self._maps if names.intersection(self._maps.values(name))]

    def note_use(self, template: str) -> None:
        """Note that a key is used, which this file may not have."""
        self._taken_from_ours.update(self._missing.intersection(variables(template)))

    def notes(self) -> list[str]:
        """Return what was taken for granted."""
        if not self._taken_from_ours:
            return []
        names = " and ".join(f"${name}" for name in sorted(self._taken_from_ours))
        note = (
            f"{self._path} is a part of a configuration, without {names}: taken to be as in "
            "whoami-router's own nginx files. Name the nginx.conf that includes it to be sure."
        )
        return [note]

    @property
    def remedy(self) -> str:
        """The line that an upstream needs."""
        name = _GROUP_KEY if _GROUP_KEY in self._maps else _USER_KEY
        return f"hash ${name} consistent;"


@dataclass(slots=True)
class _Destination:
    """Which requests go to an upstream, and whether whoami-router is asked about them."""

    groups: dict[str, None] = field(default_factory=dict)
    locations: dict[str, None] = field(default_factory=dict)
    asks: bool = False


def _upstreams(configuration: Configuration, only: Sequence[str]) -> list[Directive]:
    """Return the upstreams that are wanted; raises NoAnswer."""
    found: dict[str, Directive] = {}
    for upstream in configuration.upstreams:
        name = upstream.args[0]
        if name in found:
            raise NoAnswer(
                f"There are two upstreams {name}, at {found[name].place} and {upstream.place}, "
                "which nginx refuses. Delete one."
            )
        found[name] = upstream
    if not found:
        raise NoAnswer(
            f"{configuration.path} has no upstream. Name the file with the pools, or nginx.conf, "
            "which includes it."
        )
    for name in only:
        if name not in found:
            raise NoAnswer(f"{configuration.path} has no upstream {name}, but {', '.join(found)}.")
    return [upstream for name, upstream in found.items() if not only or name in only]


def _takes_user(one: Directive) -> bool:
    return (
        one.name == "auth_request_set"
        and len(one.args) == 2  # noqa: PLR2004  (variable, value)
        and one.args[1].lower() == _IDENTIFIER
    )


def _destinations(configuration: Configuration, source: _Source) -> dict[str, _Destination]:
    """Return what goes to each upstream, by its name in lower case."""
    found: dict[str, _Destination] = {}
    locations = list(configuration.locations)
    for location in locations:
        for target in _targets(location):
            if not variables(target):
                destination = found.setdefault(target.lower(), _Destination())
                destination.locations[" ".join(("location", *location.directive.args))] = None
                destination.asks |= any(map(_takes_user, location.inherited("auth_request_set")))
                continue
            for group in source.groups:
                request = source.request(_ANYONE, group)
                for name, template in _assigned(location):
                    request.assign(name, template)
                _note_group(found, request, target, group)
    if not locations:
        # A table of pools, without the locations that use it.
        names = {upstream.args[0] for upstream in configuration.upstreams}
        for variable in source.tables(names):
            for group in source.groups:
                _note_group(found, source.request(_ANYONE, group), f"${{{variable}}}", group)
    return found


def _note_group(found: dict[str, _Destination], request: Request, target: str, group: str) -> None:
    try:
        name = _host(request.text(target))
    except Undecided:
        return
    found.setdefault(name.lower(), _Destination()).groups[group] = None


def _targets(location: Location) -> Iterator[str]:
    """Yield where the location passes requests to: an upstream's name, or variables of one."""
    blocks = (location.directive, *location.directive.find("if"))
    for one in (passing for block in blocks for passing in block.find("proxy_pass")):
        if one.args:
            yield _host(one.args[0])


def _host(url: str) -> str:
    return _URI.sub("", url.removeprefix("http://").removeprefix("https://"))


def _assigned(location: Location) -> Iterator[tuple[str, str | None]]:
    """Yield the variables that ``set`` has set there, None for a value that depends on an `if`."""
    for block in (*location.parents, location.directive):
        for one in block.find("set"):
            if len(one.args) == 2:  # noqa: PLR2004  (variable, value)
                yield one.args[0].removeprefix("$").lower(), one.args[1]
        for condition in block.find("if"):
            for one in condition.find("set"):
                yield one.args[0].removeprefix("$").lower() if one.args else "", None


def _pools(upstream: Directive, source: _Source, destination: _Destination) -> list[Pool]:
    """Return the upstream as a pool, once for each way in which it is hashed by user.

    Raises _NotByUser, also where nginx would refuse the upstream.
    """
    name = upstream.args[0]
    method = next((one for one in reversed(upstream.children) if one.name in _METHODS), None)
    if method is None or method.name != "hash" or not method.args:
        how = "has no hash line" if method is None else f"goes by {method.name}"
        raise _NotByUser(
            f"{name} {how} ({(method or upstream).place}), so no server of it is a user's. "
            f"To make it so, write in it: {source.remedy}",
            unexpected=destination.asks,
        )
    ways = _ways(name, method, source, destination)
    if method.args[1:] != ("consistent",):
        raise _NotByUser(
            f'{name} is hashed without "consistent" ({method.place}), so most users move whenever '
            "a server comes or goes, and where they are is not said here. "
            f"Write in it: hash {method.args[0]} consistent;",
            unexpected=True,
        )
    servers = _servers(upstream)
    source.note_use(method.args[0])
    return [
        Pool(
            name,
            servers,
            Key(source, method.args[0], groups[0]),
            tuple(group for group in groups if group is not None),
            tuple(destination.locations),
        )
        for groups in ways
    ]


def _ways(
    name: str, method: Directive, source: _Source, destination: _Destination
) -> list[list[str | None]]:
    """Return the groups that go by user, together if by the same key; raises _NotByUser.

    None stands for a request of which only the user is known.
    """
    template = method.args[0]
    by_key: dict[str, list[str | None]] = {}
    otherwise: dict[str, None] = {}

    def look(group: str | None) -> None:
        try:
            key = source.request(_ANYONE, group).text(template)
        except Undecided as exc:
            otherwise[f"depends on {exc}"] = None
            return
        if _ANYONE in key:
            by_key.setdefault(key, []).append(group)
        else:
            otherwise[f"is {key}" if key else "is empty"] = None

    if destination.locations or not destination.groups:
        look(None)
    # Of a location that names the pool nobody says which groups it is for.
    any_group = source.groups if destination.locations and not by_key else ()
    for group in destination.groups or any_group:
        look(group)
    if by_key:
        return list(by_key.values())
    what = f" for {', '.join(destination.groups)}" if destination.groups else ""
    remedy = f" Write in it: {source.remedy}" if destination.asks else ""
    raise _NotByUser(
        f"{name} is not hashed by the user{what}: {template} ({method.place}) "
        f"{' or '.join(otherwise)}.{remedy}",
        unexpected=destination.asks,
    )


def _servers(upstream: Directive) -> tuple[Server, ...]:
    """Return the servers of an upstream; raises _NotByUser."""

    def unreadable(reason: str) -> _NotByUser:
        # nginx refuses the file. But the other pools are as they are written.
        return _NotByUser(reason, unexpected=True)

    name = upstream.args[0]
    servers = []
    hashed = False
    for line in upstream.children:
        hashed |= line.name == "hash"
        if line.name != "server":
            continue
        service = next((word for word in line.args if word.startswith("service=")), None)
        if service is not None:
            raise _NotByUser(
                f"{name} has a server with {service} ({line.place}): nginx hashes the addresses "
                "that it gets from DNS, so which server is whose is not in the file.",
                unexpected=True,
            )
        try:
            servers.append(server(line.args))
        except ValueError as exc:
            text = line.args[0] if line.args else "without a name"
            raise unreadable(f"{line.place}: server {text} {exc}.") from exc
        if hashed and servers[-1].backup:
            raise unreadable(
                f"{line.place}: nginx refuses backup after a hash line. Move the hash line to the "
                f"end of {name}, or delete backup."
            )
    if all(one.backup for one in servers):
        raise unreadable(f"{upstream.place}: {name} has no server, and nginx refuses that.")
    try:
        refuse_heavy(servers)
    except ValueError as exc:
        raise unreadable(f"{upstream.place}: {name} {exc}.") from exc
    return tuple(servers)
