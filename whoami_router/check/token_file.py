"""Reads an access token from a file, so that it is in no command line."""

import os
import re
import stat
from dataclasses import dataclass, field

from whoami_router.tokens import is_askable

# Longer than any token that can be asked about, with a line break behind it.
_MOST = 16 * 1024


class NoToken(Exception):  # noqa: N818  (the name says the consequence)
    """There is no token in the file; says why and what to do, never what is in it."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token, and whether other users may read the file that it was in."""

    token: bytes = field(repr=False)
    readable_by_others: bool


def read(name: str) -> TokenFile:
    """Return the token in the file of this name, ``-`` for standard input; raises NoToken."""
    try:
        if name == "-":
            # Not sys.stdin, which is None where standard input is closed.
            return TokenFile(_token(_all_of(0)), readable_by_others=False)
        file = os.open(name, os.O_RDONLY)
        try:
            mode = os.fstat(file).st_mode
            others = stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
            return TokenFile(_token(_all_of(file)), others)
        finally:
            os.close(file)
    except OSError as exc:
        raise NoToken(f"cannot be read: {exc.strerror}") from exc
    except ValueError as exc:  # a name with a NUL
        raise NoToken("cannot be read") from exc


def named(name: str) -> str:
    """Return how to speak of a file, which may be a token that somebody gave in its place."""
    like_token = re.search(r"(?<![A-Za-z0-9])(syt|mat|mct)_", name) is not None
    path = name == "-" or name.startswith(("/", "./", "../"))
    if like_token or not (path or os.path.lexists(name)):
        return "the file given by --token-file"
    return repr(name)


def _all_of(file: int) -> bytes:
    text = b""
    while len(text) <= _MOST and (part := os.read(file, _MOST)):
        text += part
    return text


def _token(text: bytes) -> bytes:
    token = text.removesuffix(b"\n").removesuffix(b"\r")
    if not token.strip():
        raise NoToken("is empty; it needs an access token")
    if b"\n" in token or b"\r" in token:
        raise NoToken("has more than one line; it needs one access token and nothing else")
    if token.startswith(b"Bearer "):
        raise NoToken("begins with `Bearer`; it needs the token without that")
    if not is_askable(token):
        raise NoToken(
            "holds no access token: those have neither spaces nor other than ASCII characters, "
            "and are not longer than 8192"
        )
    return token
