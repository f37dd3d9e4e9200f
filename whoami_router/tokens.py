"""Finds the access token in a request and says what can be known from its text alone."""

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

Headers = Mapping[bytes, bytes]
"""Headers by their names (lower case), as ``by_name`` returns them."""

# What can stand in an Authorization header after the one space: visible ASCII. Synapse decodes
# tokens as ASCII, and a line break from a decoded query must never reach a header. The length
# is beyond what nginx passes on by default (8 KiB a header line).
_ASKABLE = re.compile(rb"[!-~]{1,8192}")

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of an ASGI scope by their names, which are in lower case.

    Of several by one name the first counts; of several ``Authorization`` none, as with Synapse.
    """
    found = dict(headers)
    if len(found) < len(headers):
        found = dict(reversed(headers))
        if sum(name == b"authorization" for name, _ in headers) > 1:
            del found[b"authorization"]
    return found


def extract_token(headers: Headers) -> bytes | None:
    """Return the access token of the client's request, or None if there is none.

    ``Authorization: Bearer`` is read the way Synapse reads it: exactly this case, exactly one
    space, exactly one such header. Without it the first ``access_token`` of the query counts,
    percent-decoded, taken from the URI that the proxy passes on in ``X-Original-URI`` (nginx)
    or ``X-Forwarded-Uri`` (Caddy, Traefik). The token is whatever the client sent: it may
    hold any bytes, but is never empty.

    See "Client Authentication" in the Matrix client-server API.
    """
    authorization = headers.get(b"authorization")
    if authorization is not None:
        token = authorization[7:]
        if authorization[:7] == b"Bearer " and token and b" " not in token:
            return token
    uri = original_uri(headers)
    return None if uri is None else _query_parameter(uri, "access_token")


def original_uri(headers: Headers) -> bytes | None:
    """Return the URI that the client asked the proxy for, or None if the proxy does not say."""
    return headers.get(b"x-original-uri", headers.get(b"x-forwarded-uri"))


def asserted_user_id(uri: bytes) -> str | None:
    """Return the user that an application service says it acts for, or None.

    See "Identity assertion" in the Matrix application service API.
    """
    value = _query_parameter(uri, "user_id")
    try:
        return None if value is None else value.decode()
    except ValueError:
        return None


def _query_parameter(uri: bytes, wanted: str) -> bytes | None:
    """Return the first such parameter of the query, percent-decoded; None if missing or empty."""
    # partition, not urlsplit: clients may send URIs on which urlsplit raises, "//[" for one.
    query = uri.partition(b"?")[2]
    # Latin-1 maps every byte to one character and back, whatever the client sent.
    for name, value in parse_qsl(query.decode("latin-1"), encoding="latin-1"):
        if name == wanted:
            return value.encode("latin-1")
    return None


def is_askable(token: bytes) -> bool:
    """Return whether Synapse can be asked about this token at all."""
    return _ASKABLE.fullmatch(token) is not None


def fingerprint(token: bytes) -> bytes:
    """Return the SHA-256 digest under which everything about a token is remembered."""
    return hashlib.sha256(token).digest()


def native_localpart(token: bytes) -> str | None:
    """Return the localpart in a token that Synapse issued itself, or None for any other token.

    Such a token is ``syt_<unpadded base64 of the localpart>_<random>_<checksum>``, the checksum
    being the CRC-32 of all that stands before its underscore, in base62 of at least six digits.
    The checksum guards against accidents, not against forgery: good enough to route by, never
    to trust.
    """
    body, _, checksum = token.rpartition(b"_")
    parts = body.split(b"_")
    if len(parts) != 3 or parts[0] != b"syt":  # noqa: PLR2004  (syt, localpart, random)
        return None
    if _base62(zlib.crc32(body)).encode() != checksum:
        return None
    try:
        padding = b"=" * (-len(parts[1]) % 4)
        return base64.b64decode(parts[1] + padding, validate=True).decode() or None
    except ValueError:
        return None


def _base62(number: int) -> str:
    digits = ""
    while number:
        number, remainder = divmod(number, 62)
        digits = _BASE62[remainder] + digits
    return digits.rjust(6, "0")
