"""Turns user IDs and fingerprints into identifiers that are safe in a header."""

from urllib.parse import quote

# The longest user ID. The specification has counted both characters and bytes; characters admit
# every ID that either reading admits. A longer identifier would not fit nginx's header buffer.
_LONGEST = 255


def from_user_id(user_id: str) -> str:
    """Return the identifier of ``@localpart:domain``: its localpart, made safe for a header.

    Raises ValueError if this cannot be a user ID. See "User Identifiers" in the appendices of
    the Matrix specification.
    """
    localpart, colon, domain = user_id.partition(":")
    if not (localpart.startswith("@") and colon and domain) or "\0" in domain:
        raise ValueError("not of the form @localpart:domain")
    if len(user_id) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    return from_localpart(localpart[1:])


def from_localpart(localpart: str) -> str:
    """Return the localpart, percent-encoded but for unreserved ASCII (RFC 3986, section 2.3).

    Historical user IDs may hold any Unicode. Encoded they stay distinct, and no value can break
    out of a header. Raises ValueError if the text is empty, too long or cannot be a localpart.
    """
    if not 0 < len(localpart) <= _LONGEST or ":" in localpart or "\0" in localpart:
        raise ValueError("not a localpart")
    return quote(localpart, safe="")  # a lone surrogate raises UnicodeEncodeError, a ValueError


def from_fingerprint(fingerprint: bytes) -> str:
    """Return the identifier of a token whose owner is unknown.

    No localpart holds a colon, so it never equals a user's identifier.
    """
    return f"sha256:{fingerprint.hex()}"
