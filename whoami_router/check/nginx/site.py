"""What nginx does with a request: which location it takes, which upstream, which key."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_address, ip_network
from urllib.parse import unquote

from whoami_router.nginx_conf import Configuration, Directive, Location
from whoami_router.nginx_maps import Maps, Undecided, variables

PART = "nginx"

IDENTIFIER_HEADER = "x_user_identifier"

_TIMES = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_COMPUTES = ("js_set", "js_var", "perl_set", "set_by_lua")

_METHODS = {"hash", "ip_hash", "least_conn", "least_time", "random", "sticky"}
_PROXY_PASS = re.compile(r"(https?)://(unix:[^:]*|[^/?]+):?(.*)", re.DOTALL)
_MODIFIERS = ("=", "^~", "~*", "~")
_OPERATORS = re.compile(r"\$(\w+)\s*(?:(=|!=|~\*|~|!~\*|!~)\s*(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sample:
    """A request as a client sends it; ``headers`` in lower case."""

    what: str
    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str = "192.0.2.1"

    def with_token(self, token: str) -> "Sample":
        """Return the same with an access token in the header."""
        return replace(self, headers={**self.headers, "authorization": f"Bearer {token}"})

    def with_query(self, query: str) -> "Sample":
        """Return the same with more in its query."""
        sign = "&" if "?" in self.target else "?"
        return replace(self, target=f"{self.target}{sign}{query}")

    def variables(self) -> dict[str, str]:
        """Return nginx's own variables of the request."""
        path, _, query = self.target.partition("?")
        known = {
            "request": f"{self.method} {self.target} HTTP/1.1",
            "request_uri": self.target,
            "request_method": self.method,
            "remote_addr": self.address,
            "realip_remote_addr": self.address,
            "binary_remote_addr": self.address,
            "host": "example.org",
            "http_host": "example.org",
            "scheme": "https",
            "server_protocol": "HTTP/1.1",
            "http_user_agent": "client",
        }
        known |= {f"http_{name.replace('-', '_')}": value for name, value in self.headers.items()}
        return known | _of_path(normalized(path), query)


@dataclass(frozen=True, slots=True)
class Target:
    """What a ``proxy_pass`` names: a scheme, an upstream or address, and the URI behind it."""

    scheme: str
    name: str
    uri: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where a request ends.

    ``location`` is the one that handles it, None if no location does. ``status`` is what nginx
    answers itself. ``asked`` is the auth location, if there is one. ``target`` is what it is
    proxied to, and ``key`` what the upstream's hash is of: None if it has no hash.
    """

    location: Location | None
    status: int | None = None
    asked: Location | None = None
    target: Target | None = None
    key: str | None = None


class Site:
    """A configuration, and what it does."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.locations = list(configuration.locations)
        self.maps = Maps(configuration.maps)

    @cached_property
    def upstreams(self) -> Mapping[str, Directive]:
        """The ``upstream`` blocks by name."""
        return {one.args[0]: one for one in self.configuration.upstreams}

    @cached_property
    def computed(self) -> set[str]:
        """The variables that nginx computes by programs, or in ways that are not known here."""
        found = set()
        for one in _walked(self.configuration.http):
            if one.name.startswith(_COMPUTES) and one.args:
                found.add(one.args[0].removeprefix("$").lower())
            elif one.name in ("split_clients", "geo") and one.args:
                found.add(one.args[-1].removeprefix("$").lower())
        return found - self.networks("192.0.2.1").keys()

    def of_server(self, server: Directive) -> list[Location]:
        """Return the locations of a server, those within others, too."""
        return [one for one in self.locations if one.server is server]

    def named(self, server: Directive, name: str) -> Location | None:
        """Return the location ``@name`` of a server."""
        return next((one for one in self.of_server(server) if one.directive.args == (name,)), None)

    def auth_location(self, location: Location) -> Location | None:
        """Return the location that ``auth_request`` names there, if it has any."""
        uri = auth_request(location)
        if uri is None or location.server is None:
            return None
        return self.location_of(location.server, normalized(uri.partition("?")[0]))

    def location_of(self, server: Directive, path: str) -> Location | None:
        """Return the location that handles a path."""
        return _select(self.of_server(server), server, path)

    def networks(self, address: str) -> dict[str, str]:
        """Return the variables of ``geo`` blocks for a client of this address."""
        values = {}
        for block in self.configuration.http.find("geo"):
            source = block.args[0] if len(block.args) > 1 else "$remote_addr"
            ranges = any(row.name == "ranges" for row in block.children)
            if block.args and source in ("$remote_addr", "$realip_remote_addr") and not ranges:
                values[block.args[-1].removeprefix("$").lower()] = _of_network(block, address)
        return values

    def walk(self, server: Directive, sample: Sample, identifier: str = "") -> Arrival:
        """Return where a request ends whose user the router names so; raises Undecided."""
        return Walk(self, server, sample, identifier).arrive()

    def walk_from(
        self,
        location: Location,
        sample: Sample,
        identifier: str = "",
        *,
        question_first: bool = False,
        answered: Mapping[str, str] | None = None,
    ) -> Arrival:
        """Return where a request ends that this location handles; raises Undecided.

        With ``question_first`` as if whoami-router were asked before anything else is done. With
        ``answered`` as if its answer had been taken into these variables, in lower case.
        """
        assert location.server is not None  # noqa: S101  (who asks has looked)
        walk = Walk(self, location.server, sample, identifier, answered or {})
        if question_first:
            return walk.content(location)
        walk.enter_server()
        return walk.handle(location)


class Walk:
    """One request on its way, with the variables that nginx has for it: once found, they stay.

    The variables of an auth subrequest are those of the request that it is made for.
    """

    def __init__(
        self,
        site: Site,
        server: Directive,
        sample: Sample,
        identifier: str,
        answered: Mapping[str, str] | None = None,
    ) -> None:
        self._site = site
        self._server = server
        self._sample = sample
        self._identifier = identifier
        self._answered = answered or {}
        self._known = sample.variables()
        self._known |= site.networks(sample.address)
        self._request = site.maps.request(self._known)

    def text(self, template: str) -> str:
        """Return what a text is, variables of which nothing is known being empty.

        Raises Undecided if that depends on what is not understood here.
        """
        while True:
            try:
                return self._request.text(template)
            except Undecided as exc:
                unknown = re.fullmatch(r"\$(\w+)", str(exc))
                if unknown is None or unknown[1] in self._site.computed:
                    raise
                self._know({unknown[1]: ""})

    def _know(self, values: Mapping[str, str]) -> None:
        self._known.update(values)
        for name, value in values.items():
            self._request.assign(name, value)

    def arrive(self) -> Arrival:
        """Return where the request ends; raises Undecided."""
        status = self.enter_server()
        location = self._site.location_of(self._server, self._known["uri"])
        if status is not None:
            return Arrival(location, status=status)
        return Arrival(None) if location is None else self.handle(location)

    def enter_server(self) -> int | None:
        """Go through what the server does first; return the status that it answers, if any."""
        return self._rewrite(self._server)

    def handle(self, location: Location) -> Arrival:
        """Return where the request ends that this location handles; raises Undecided."""
        for _ in range(10):  # nginx gives up, too
            status = self._rewrite(location.directive)
            if status is None:
                for zone in self._limits(location):
                    self.text(zone)
                return self.content(location)
            following = self._site.named(self._server, error_page(location, status) or "")
            if following is None:
                return Arrival(location, status=status)
            location = following
        raise Undecided("an endless circle of error pages")

    def ask(self, location: Location) -> None:
        """Go through the auth location: its upstream's key and its cache's are found there."""
        outside = dict(self._known)
        self.enter(location)
        self.content(location, subrequest=True)
        for name in ("proxy_cache_key", "proxy_no_cache", "proxy_cache_bypass"):
            for one in location.inherited(name):
                self.text(" ".join(one.args))
        self._know(outside)

    def enter(self, location: Location) -> None:
        """Take what the request itself has for that of the auth subrequest: it has no query."""
        self._know({name: "" for name in self._known if name.startswith("arg_")})
        self._know(_of_path(modifier_and_path(location)[1], ""))
        self._rewrite(location.directive)

    def content(self, location: Location, *, subrequest: bool = False) -> Arrival:
        """Return where the location passes the request on, after it has asked; or Undecided."""
        asked = None
        if not subrequest:
            asked = self._site.auth_location(location)
            if asked is not None:
                self.ask(asked)
                self._set_answer(location)
            self._know(self._answered)
        passed = next(location.directive.find("proxy_pass"), None)
        if passed is None or not passed.args:
            return Arrival(location, asked=asked)
        target = parse_target(self.text(passed.args[0]))
        if target is None:
            return Arrival(location, asked=asked)
        key = None
        upstream = self._site.upstreams.get(target.name)
        if upstream is not None and (hashed := hash_of(upstream)) is not None:
            key = self.text(hashed.args[0])
        return Arrival(location, asked=asked, target=target, key=key)

    def _set_answer(self, location: Location) -> None:
        answer = {
            f"{source}_{IDENTIFIER_HEADER}{more}": value
            for source in ("upstream_http", "sent_http")
            for more, value in (("", self._identifier), ("_source", "whoami"))
        }
        answer["upstream_status"] = "204"
        values = {}
        self._know(answer)
        for one in location.inherited("auth_request_set"):
            if len(one.args) == 2:  # noqa: PLR2004  (variable, value)
                values[one.args[0].removeprefix("$").lower()] = self.text(one.args[1])
        # Afterwards these are the main request's own, which has no answer yet.
        self._know(dict.fromkeys(answer, ""))
        self._know(values)

    def _limits(self, location: Location) -> Iterator[str]:
        """Yield the keys of limits that count before anybody is asked."""
        for name in ("limit_req", "limit_conn"):
            for one in location.inherited(name):
                wanted = {argument.removeprefix("zone=") for argument in one.args}
                for zone in self._site.configuration.http.find(f"{name}_zone"):
                    if wanted & {_zone(argument) for argument in zone.args}:
                        yield zone.args[0]

    def _rewrite(self, block: Directive) -> int | None:
        """Go through set, if and return; return the status that nginx is to answer."""
        for one in block.children:
            if one.name == "set" and len(one.args) == 2:  # noqa: PLR2004  (variable, value)
                self._know({one.args[0].removeprefix("$").lower(): self.text(one.args[1])})
            elif one.name == "return" and one.args:
                return int(one.args[0]) if one.args[0].isdigit() else 302
            elif one.name == "if" and self._holds(" ".join(one.args)):
                status = self._rewrite(one)
                if status is not None:
                    return status
        return None

    def _holds(self, condition: str) -> bool:
        found = _OPERATORS.fullmatch(condition.strip().removeprefix("(").removesuffix(")").strip())
        if found is None:  # of files
            return False
        name, operator, operand = found.groups()
        value = self.text(f"${name}")
        if operator is None:
            return value not in ("", "0")
        if "~" in operator:
            matches = pattern(operand, ignore_case="*" in operator).search(value) is not None
        else:
            matches = value == self.text(operand)
        return matches != operator.startswith("!")


def auth_request(location: Location) -> str | None:
    """Return the URI that ``auth_request`` asks before this location."""
    found = location.inherited("auth_request")
    return found[-1].args[0] if found and found[-1].args and found[-1].args != ("off",) else None


def error_page(location: Location, status: int) -> str | None:
    """Return where ``error_page`` sends a status."""
    for one in location.inherited("error_page"):
        if str(status) in one.args[:-1]:
            return one.args[-1]
    return None


def hash_of(upstream: Directive) -> Directive | None:
    """Return the ``hash`` of an upstream, if it is hashed: the last method counts."""
    methods = [one for one in upstream.children if one.name in _METHODS]
    return methods[-1] if methods and methods[-1].name == "hash" and methods[-1].args else None


def primary_servers(upstream: Directive) -> list[str]:
    """Return the addresses among which nginx chooses."""
    return [
        one.args[0]
        for one in upstream.find("server")
        if one.args and not {"backup", "down"} & set(one.args)
    ]


def parse_target(text: str) -> Target | None:
    """Return what a ``proxy_pass`` names, its variables filled in."""
    found = _PROXY_PASS.fullmatch(text)
    return None if found is None else Target(found[1], found[2], found[3])


def value(location: Location, name: str, default: str) -> str:
    """Return the first word of the directive of this name that counts in a location."""
    directives = location.inherited(name)
    return directives[-1].args[0] if directives and directives[-1].args else default


def place(location: Location, name: str, default: str) -> str:
    """Return where the directive of this name stands that counts in a location."""
    directives = location.inherited(name)
    return directives[-1].place if directives else default


def seconds(text: str) -> float | None:
    """Return how many seconds a time of nginx's is, None if it is none."""
    parts = re.findall(r"([0-9]+)(ms|[smhd]?)\s*", text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.replace(" ", ""):
        return None
    return sum(int(number) * _TIMES[unit] for number, unit in parts)


def normalized(path: str) -> str:
    """Return a path as nginx has it in ``$uri``."""
    decoded = re.sub("/{2,}", "/", unquote(path, errors="surrogateescape"))
    if "/." not in decoded:
        return decoded
    end = "/" if decoded.endswith(("/", "/.", "/..")) else ""
    return posixpath.normpath(decoded).rstrip("/") + end or "/"


def pattern(text: str, *, ignore_case: bool) -> re.Pattern[str]:
    """Return an expression of nginx's as Python's; raises Undecided."""
    try:
        return re.compile(
            re.sub(r"\(\?<(?=[A-Za-z_])", "(?P<", text), re.IGNORECASE if ignore_case else 0
        )
    except re.error as exc:
        raise Undecided(f"the expression {text}, which is not understood here") from exc


def depends_on(site: Site, template: str, wanted: str) -> bool:
    """Return whether a text can depend on a variable, by way of maps."""
    seen: set[str] = set()
    waiting = variables(template)
    while waiting:
        name = waiting.pop()
        if name == wanted:
            return True
        if name in seen or name not in site.configuration.maps:
            continue
        seen.add(name)
        block = site.configuration.maps[name]
        for text in (block.args[0], *(row.args[0] for row in block.children if row.args)):
            waiting += variables(text)
    return False


def _of_path(path: str, query: str) -> dict[str, str]:
    known = {
        "uri": path,
        "document_uri": path,
        "args": query,
        "query_string": query,
        "is_args": "?" if query else "",
    }
    for parameter in reversed(query.split("&")):  # the first counts
        name, equals, value = parameter.partition("=")
        if equals:
            known[f"arg_{name.lower()}"] = value
    return known


def _walked(block: Directive) -> Iterator[Directive]:
    for one in block.children:
        yield one
        if one.name not in ("map", "geo", "split_clients"):
            yield from _walked(one)


def _of_network(block: Directive, address: str) -> str:
    client = ip_address(address)
    rows = {row.name: row.args[0] for row in block.children if row.args}
    value, longest = rows.pop("default", ""), -1
    for name, given in rows.items():
        try:
            network = ip_network(name, strict=False)
        except ValueError:  # another parameter
            continue
        if client in network and network.prefixlen > longest:
            value, longest = given, network.prefixlen
    return value


def _zone(argument: str) -> str:
    return argument.removeprefix("zone=").partition(":")[0]


def modifier_and_path(location: Location) -> tuple[str, str]:
    """Return the two parts of what stands behind ``location``; a space between is not needed."""
    *modifier, path = location.directive.args
    if modifier:
        return modifier[0], path
    found = next((one for one in _MODIFIERS if path.startswith(one)), "")
    return found, path.removeprefix(found)


def _select(locations: list[Location], block: Directive, path: str) -> Location | None:
    here = [one for one in locations if one.parents[-1] is block]
    prefix: tuple[str, str, Location] | None = None
    for one in here:
        modifier, start = modifier_and_path(one)
        if modifier == "=" and start == path:
            return one
        longer = prefix is None or len(start) > len(prefix[1])
        if modifier in ("", "^~") and start.startswith("/") and path.startswith(start) and longer:
            prefix = (modifier, start, one)
    found = None
    if prefix is not None:
        found = _select(locations, prefix[2].directive, path) or prefix[2]
        if prefix[0] == "^~":
            return found
    for one in here:
        modifier, expression = modifier_and_path(one)
        if modifier in ("~", "~*") and pattern(expression, ignore_case=modifier == "~*").search(
            path
        ):
            return _select(locations, one.directive, path) or one
    return found
