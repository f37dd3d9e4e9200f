"""What nginx's variables are for a request, as far as ``map`` blocks say; pure."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from whoami_router.nginx_conf import Directive

_VARIABLE = re.compile(r"\$(?:([1-9])|\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))")
# (?<name>...) and (?'name'...) are Python's (?P<name>...); (?<=...) and (?<!...) look behind.
_NAMED_GROUP = re.compile(r"(\\.)|\(\?(?:<([A-Za-z_]\w*)>|'([A-Za-z_]\w*)')", re.DOTALL)


class Undecided(Exception):  # noqa: N818  (the name says the consequence)
    """What a text is depends on something that is not known; says on what."""


@dataclass(frozen=True, slots=True)
class _Map:
    """A ``map`` block: the text that is looked up, and what it becomes."""

    source: str
    exact: Mapping[bytes, str]
    expressions: tuple[tuple[str, str], ...]
    default: str
    with_hostnames: bool


class Maps:
    """The ``map`` blocks of a configuration, by the variable they set."""

    def __init__(self, blocks: Mapping[str, Directive]) -> None:
        self._maps = {variable: _read(block) for variable, block in blocks.items()}
        self._captures = {
            name.lower()
            for one in self._maps.values()
            for expression, _ in one.expressions
            for match in _NAMED_GROUP.finditer(expression)
            for name in match.group(2, 3)
            if name
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __contains__(self, variable: str) -> bool:
        return variable in self._maps

    def request(self, known: Mapping[str, str]) -> "Request":
        """Return the variables of a request of which these are known (in lower case)."""
        return Request(self._maps, self._captures, dict(known))

    def mentioned(self, variable: str) -> list[str]:
        """Return each value that the variable is compared with or may become, as written."""
        seen: dict[str, None] = {}
        for one in self._maps.values():
            if variables(one.source) == [variable]:
                seen.update(dict.fromkeys(key.decode() for key in one.exact))
        seen.update(dict.fromkeys(self.values(variable)))
        return [value for value in seen if value]

    def values(self, variable: str) -> list[str]:
        """Return the values that the map of the variable has, also those of maps that it names."""
        found: dict[str, None] = {}
        visited = set()
        waiting = [variable]
        while waiting:
            name = waiting.pop(0)
            if name in visited or name not in self._maps:
                continue
            visited.add(name)
            one = self._maps[name]
            for value in (*one.exact.values(), *(v for _, v in one.expressions), one.default):
                named = variables(value)
                if named:
                    waiting.extend(named)
                else:
                    found[value] = None
        return list(found)


@dataclass(slots=True)
class Request:
    """The variables of one request, each found when it is asked for, as nginx does.

    ``compared`` are the texts that were looked up in a map that does more than to ask whether they
    are empty.
    """

    _maps: Mapping[str, _Map]
    _capture_names: set[str]
    _known: dict[str, str | None]
    compared: list[str] = field(default_factory=list)
    _found: dict[str, str] = field(default_factory=dict)
    _captured: dict[str, str] = field(default_factory=dict)
    _numbered: tuple[str, ...] = ()
    _finding: list[str] = field(default_factory=list)

    def text(self, template: str) -> str:
        """Return what the text is with its variables filled in; raises Undecided."""
        parts = []
        end = 0
        for match in _VARIABLE.finditer(template):
            parts.append(template[end : match.start()])
            number, *names = match.groups()
            parts.append(self._capture(int(number)) if number else self._variable(*names))
            end = match.end()
        return "".join([*parts, template[end:]])

    def assign(self, name: str, template: str | None) -> None:
        """Do what ``set`` does; None for a value that nobody knows."""
        value = None
        if template is not None:
            with suppress(Undecided):
                value = self.text(template)
        self._known[name] = value

    def _capture(self, number: int) -> str:
        """Return what the last expression that matched has in this group."""
        return self._numbered[number - 1] if number <= len(self._numbered) else ""

    def _variable(self, *names: str | None) -> str:
        name = next(name for name in names if name).lower()
        if name in self._known:
            if (known := self._known[name]) is None:
                raise Undecided(f"${name}")
            return known
        if name in self._found:
            return self._found[name]
        if name in self._maps:
            return self._of_map(name)
        if name in self._capture_names:
            return self._captured.get(name, "")
        raise Undecided(f"${name}")

    def _of_map(self, name: str) -> str:
        if name in self._finding:
            raise Undecided(f"${name}, which depends on itself")
        one = self._maps[name]
        self._finding.append(name)
        try:
            value = self.text(self._looked_up(one, name))
        finally:
            self._finding.pop()
        self._found[name] = value
        return value

    def _looked_up(self, one: _Map, name: str) -> str:
        """Return the value as it is written beside the text that matches."""
        if one.with_hostnames:
            raise Undecided(f"${name}, whose map is one of host names")
        source = self.text(one.source)
        if one.expressions or one.exact.keys() - {b""}:
            self.compared.append(source)
        text = source.encode(errors="surrogateescape")
        found = one.exact.get(text.lower())  # of bytes: only ASCII has cases to nginx
        if found is not None:
            return found
        # nginx asks no expression about nothing.
        for expression, value in one.expressions if text else ():
            if (match := _compiled(expression, name).search(text)) is not None:
                # The groups of an expression without any hide those of the one before.
                self._numbered = tuple(_decoded(group) for group in match.groups())
                self._captured.update(
                    (group.lower(), _decoded(found)) for group, found in match.groupdict().items()
                )
                return value
        return one.default


def variables(template: str) -> list[str]:
    """Return the names of the variables in a text, in lower case, without ``$1`` and its like."""
    return [
        name.lower()
        for match in _VARIABLE.finditer(template)
        for name in match.group(2, 3)
        if name is not None
    ]


def _read(block: Directive) -> _Map:
    exact: dict[bytes, str] = {}
    expressions = []
    default = ""
    for line in block.children:
        if len(line.args) != 1:
            continue
        key, [value] = line.name, line.args
        if key == "default":
            default = value
        elif key.startswith("~"):
            expressions.append((key[1:], value))
        else:
            # A backslash is for keys that would mean something else: \default, \~.
            key = key.removeprefix("\\")
            exact.setdefault(key.encode(errors="surrogateescape").lower(), value)
    return _Map(
        source=block.args[0],
        exact=exact,
        expressions=tuple(expressions),
        default=default,
        with_hostnames=any(line.name == "hostnames" and not line.args for line in block.children),
    )


def _compiled(expression: str, name: str) -> re.Pattern[bytes]:
    """Return a PCRE as Python's, to be used on bytes, as nginx does; raises Undecided."""
    flags = re.NOFLAG
    if expression.startswith("*"):
        expression, flags = expression[1:], re.IGNORECASE
    pattern = _NAMED_GROUP.sub(lambda match: match[1] or f"(?P<{match[2] or match[3]}>", expression)
    try:
        return re.compile(pattern.encode(errors="surrogateescape"), flags)
    except re.error as exc:
        raise Undecided(f"${name}, in whose map {expression} is not understood here") from exc


def _decoded(group: bytes | None) -> str:
    return (group or b"").decode(errors="surrogateescape")
