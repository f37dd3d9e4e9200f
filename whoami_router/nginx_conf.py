"""Reads an nginx configuration as nginx does: every include in its place."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import glob, has_magic
from pathlib import Path

from crossplane import lex  # type: ignore[import-untyped]  # it has no annotations
from crossplane.errors import NgxParserBaseException  # type: ignore[import-untyped]

# Blocks within blocks: a configuration has five or six. Who walks it shall not run out of stack.
_DEEPEST = 50

_MAIN_BLOCKS = {"events", "http", "mail", "stream"}


class UnreadableConfiguration(Exception):  # noqa: N818  (the name says the consequence)
    """nginx could not read this either; one line that names file, line and reason."""


@dataclass(frozen=True, slots=True)
class Directive:
    """One directive: ``name args;`` or ``name args { block }``.

    ``block`` is None for the first kind. Quotes are taken off and backslashes resolved as nginx
    does; the parentheses of an ``if`` are still there. ``file`` and ``line`` are where it stands.
    """

    name: str
    args: tuple[str, ...]
    file: Path
    line: int
    block: tuple["Directive", ...] | None = None

    @property
    def children(self) -> tuple["Directive", ...]:
        """What is directly in the block; nothing if there is none."""
        return self.block or ()

    @property
    def place(self) -> str:
        """Where it stands, as ``file:line``."""
        return f"{self.file}:{self.line}"

    def find(self, name: str) -> Iterator["Directive"]:
        """Yield the directives of this name that are directly in the block, in order."""
        return (child for child in self.children if child.name == name)


@dataclass(frozen=True, slots=True)
class Location:
    """A ``location``, and the blocks around it: http first, the innermost last."""

    directive: Directive
    parents: tuple[Directive, ...]

    @property
    def server(self) -> Directive | None:
        """The server that it is in; None in a fragment without one."""
        return next((parent for parent in self.parents if parent.name == "server"), None)

    def inherited(self, name: str) -> tuple[Directive, ...]:
        """Return the directives of this name that count here.

        nginx takes all of them from the innermost block that has any, and none from further out.
        """
        for block in (self.directive, *reversed(self.parents)):
            if found := tuple(block.find(name)):
                return found
        return ()


@dataclass(frozen=True)
class Configuration:
    """All directives, as nginx has them after every include.

    ``path`` is the file that was read. A file may also be a part of a configuration: what stands at
    its top level is taken for what is in http.
    """

    path: Path
    directives: tuple[Directive, ...]

    @property
    def whole(self) -> bool:
        """Whether it is a whole configuration, and not a part that another file includes."""
        return any(one.name in _MAIN_BLOCKS for one in self.directives)

    @cached_property
    def http(self) -> Directive:
        """The http block; in a fragment, one with everything in it."""
        blocks = [one for one in self.directives if one.name == "http" and one.block is not None]
        if not blocks:
            return Directive("http", (), self.path, 1, self.directives)
        first = blocks[0]
        together = tuple(child for block in blocks for child in block.children)
        return Directive("http", first.args, first.file, first.line, together)

    @property
    def servers(self) -> list[Directive]:
        """The ``server`` blocks, in order."""
        return [one for one in self.http.find("server") if one.block is not None]

    @property
    def upstreams(self) -> list[Directive]:
        """The ``upstream`` blocks, in order. Two of one name are an error to nginx, not here."""
        return [one for one in self.http.find("upstream") if one.block is not None and one.args]

    @cached_property
    def maps(self) -> Mapping[str, Directive]:
        """The ``map`` blocks by the variable they set, without ``$`` and in lower case.

        Of several for one variable, the last counts, as it does for nginx.
        """
        return {
            one.args[1].removeprefix("$").lower(): one
            for one in self.http.find("map")
            if one.block is not None and len(one.args) == 2  # noqa: PLR2004  (source, variable)
        }

    @property
    def every(self) -> Iterator[Directive]:
        """Yield all directives of http, also those within blocks, in order."""
        return _every(self.http)

    @property
    def locations(self) -> Iterator[Location]:
        """Yield every location, also those within others, in order."""
        return _locations(self.http, ())


def load(path: str | Path) -> Configuration:
    """Return the configuration in a file, raises UnreadableConfiguration.

    It may be a whole one (nginx.conf) or a file that one includes. Names of included files are
    relative to the directory of the whole one's main file.
    """
    path = Path(path)
    main = _parse(path)
    return Configuration(path, _with_includes(main, _directory(path, main), (path,)))


def _every(block: Directive) -> Iterator[Directive]:
    for child in block.children:
        yield child
        yield from _every(child)


def _locations(block: Directive, parents: tuple[Directive, ...]) -> Iterator[Location]:
    parents = (*parents, block)
    for child in block.children:
        if child.name == "location" and child.block is not None:
            yield Location(child, parents)
        if child.name in {"server", "location"}:
            yield from _locations(child, parents)


def _directory(path: Path, directives: tuple[Directive, ...]) -> Path:
    """Return what the names of included files are relative to.

    For a part of a configuration that is the directory above it in which there is an nginx.conf.
    """
    if any(one.name in _MAIN_BLOCKS for one in directives):
        return path.parent
    above = Path(os.path.abspath(path)).parents  # noqa: PTH100  (resolve() follows links)
    return next((one for one in above if (one / "nginx.conf").is_file()), path.parent)


def _with_includes(
    directives: tuple[Directive, ...], directory: Path, reading: tuple[Path, ...]
) -> tuple[Directive, ...]:
    """Return the directives with what they include in place; ``reading`` is what includes them."""
    whole: list[Directive] = []
    for one in directives:
        if one.name == "include" and one.block is None:
            for file in _included(one, directory):
                if file in reading:
                    raise UnreadableConfiguration(f"{one.place}: {file} includes itself.")
                whole.extend(_with_includes(_parse(file, one), directory, (*reading, file)))
        elif one.block is None:
            whole.append(one)
        else:
            block = _with_includes(one.block, directory, reading)
            whole.append(Directive(one.name, one.args, one.file, one.line, block))
    return tuple(whole)


def _included(include: Directive, directory: Path) -> list[Path]:
    """Return the files that are meant, in the order in which nginx reads them."""
    if len(include.args) != 1:
        raise UnreadableConfiguration(f"{include.place}: include needs one file name.")
    name = str(directory / include.args[0])
    if not has_magic(name):
        return [Path(name)]
    found = glob(name)  # noqa: PTH207  (the directory may be in the pattern, as in /etc/*/x.conf)
    return [Path(file) for file in sorted(found, key=os.fsencode)]


def _parse(path: Path, include: Directive | None = None) -> tuple[Directive, ...]:
    """Return what is in one file, its includes as they are; ``include`` is what asked for it."""
    try:
        return _blocks(path)
    except OSError as exc:
        asked = "" if include is None else f"{include.place}: "
        raise UnreadableConfiguration(f"{asked}cannot read {path}: {exc.strerror}.") from exc
    except ValueError as exc:  # a name with a NUL
        raise UnreadableConfiguration(f"cannot read {str(path)!r}: {exc}.") from exc
    except NgxParserBaseException as exc:
        place = f"{path}:{exc.lineno}" if exc.lineno else f"{path}"
        raise UnreadableConfiguration(f"{place}: {exc.strerror}.") from exc


def _blocks(path: Path) -> tuple[Directive, ...]:
    """Return what crossplane's words mean, raises UnreadableConfiguration.

    Its own parser names the wrong file for what follows an include, takes a `}` for the `;` that is
    missing before it, and knows nothing of directives that are newer than itself.
    """
    words: list[str] = []
    start = line = 1
    opened: list[_Block] = []
    level: list[Directive] = []

    def unexpected(found: str) -> UnreadableConfiguration:
        after = f', no ";" after {words[0]!r}' if words else ""
        return UnreadableConfiguration(f"{path}:{line}: unexpected {found}{after}.")

    for word, line, quoted in lex(str(path)):
        special = "" if quoted else word
        if special.startswith("#"):
            continue
        if special not in {"{", "}", ";"}:
            start = start if words else line
            words += map(_unescaped, [word] if quoted else _parted(word, f"{path}:{line}"))
            continue
        if bool(words) is (special == "}"):
            raise unexpected(f'"{special}"')
        if special == ";":
            level.append(Directive(words[0], tuple(words[1:]), path, start))
        elif special == "{":
            if len(opened) == _DEEPEST:
                raise unexpected(f'"{{" in {_DEEPEST} blocks')
            opened.append(_Block(words, start, level))
            level = []
        else:
            block = opened.pop()  # crossplane has seen to it that there is one
            block.around.append(
                Directive(block.words[0], tuple(block.words[1:]), path, block.line, tuple(level))
            )
            level = block.around
        words = []
    if words:
        raise unexpected("end of file")
    return tuple(level)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block that is not closed yet, and the directives before it."""

    words: list[str]
    line: int
    around: list[Directive]


def _parted(word: str, place: str) -> list[str]:
    """Return the words in one without quotes; raises UnreadableConfiguration.

    crossplane takes the space after ``${variable}`` for a part of it, and what follows as well.
    """
    first, *others = [part for part in re.split(r"(?<=\})\s+", word) if part] or [word]
    if any(part.startswith(('"', "'", "#")) for part in others):
        raise UnreadableConfiguration(f"{place}: {first} cannot be read here. Put it in quotes.")
    return [first, *others]


def _unescaped(word: str) -> str:
    """Return a word as nginx has it: it takes the backslash off these and no others.

    crossplane has done so for quotes within quotes of their own kind; that a backslash is left
    before such a quote means that two stood there.
    """
    if "\\" not in word:
        return word
    known = {"\\": "\\", '"': '"', "'": "'", "t": "\t", "r": "\r", "n": "\n"}
    text = ""
    characters = iter(word)
    for character in characters:
        if character != "\\":
            text += character
            continue
        escaped = next(characters, "")
        text += known.get(escaped, "\\" + escaped)
    return text
