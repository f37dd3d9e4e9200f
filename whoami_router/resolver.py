"""Says where a token's request goes: from memory, by a lookup, or by a fallback."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from cachetools import TLRUCache

from whoami_router import identifiers, tokens
from whoami_router.whoami import Caller, WhoamiUnavailable

logger = logging.getLogger(__name__)

Lookup = Callable[[bytes, Caller], Awaitable[str | None]]
"""Returns the user ID of a token's owner, None for a rejected token, or raises
WhoamiUnavailable."""


class Source(StrEnum):
    """How an identifier was found, as ``X-User-Identifier-Source`` says it."""

    CACHE = "cache"
    WHOAMI = "whoami"
    TOKEN = "token"  # noqa: S105  (a word of the protocol)
    FINGERPRINT = "fingerprint"
    REJECTED = "rejected"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The identifier to route by, or None, and where it comes from."""

    identifier: str | None
    source: Source


class Resolver:
    """Resolves tokens to identifiers and remembers the answers.

    A token never changes its owner, so a remembered answer may be moot (the token was revoked,
    which is Synapse's to say) but is never wrong. At most ``cache_size`` tokens are remembered,
    by fingerprint only, for ``cache_ttl`` seconds each; the least recently used is forgotten
    first. ``clock`` returns seconds that never go backwards.
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        cache_size: int,
        cache_ttl: float,
        clock: Callable[[], float],
    ) -> None:
        self._lookup = lookup
        self._remembered: TLRUCache[bytes, str] = TLRUCache(
            maxsize=cache_size, ttu=lambda _key, _value, now: now + cache_ttl, timer=clock
        )
        self._in_flight: dict[bytes, asyncio.Task[Resolution]] = {}
        self._synapse_available = True

    async def resolve(self, token: bytes | None, caller: Caller) -> Resolution:
        """Return where this token's request goes; waits at most as long as one lookup."""
        if token is None:
            return Resolution(None, Source.NONE)
        key = tokens.fingerprint(token)
        try:
            resolution = Resolution(self._remembered[key], Source.CACHE)
        except KeyError:
            resolution = await self._resolve_unknown(key, token, caller)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %s (%s)", key.hex()[:12], resolution.identifier, resolution.source)
        return resolution

    async def _resolve_unknown(self, key: bytes, token: bytes, caller: Caller) -> Resolution:
        if not tokens.is_askable(token):
            return _fallback(key, token)
        lookup = self._in_flight.get(key)
        if lookup is None:
            # A task of its own, awaited through a shield: the first caller may go away while
            # others wait for the same answer.
            lookup = asyncio.create_task(self._look_up(key, token, caller))
            self._in_flight[key] = lookup
            lookup.add_done_callback(lambda _: self._in_flight.pop(key))
        return await asyncio.shield(lookup)

    async def _look_up(self, key: bytes, token: bytes, caller: Caller) -> Resolution:
        try:
            user_id = await self._lookup(token, caller)
            identifier = None if user_id is None else identifiers.from_user_id(user_id)
        except (WhoamiUnavailable, ValueError) as exc:
            self._note_unavailable(exc)
            return _fallback(key, token)
        except Exception as exc:  # noqa: BLE001  (a defect, of ours or of a library)
            # The place but not the message, which could quote the request.
            place = "".join(traceback.format_tb(exc.__traceback__))
            logger.error(  # noqa: TRY400  (.exception would add the message)
                "%s during a lookup, please report:\n%s", type(exc).__name__, place
            )
            return _fallback(key, token)
        self._note_available()
        if identifier is None:
            return Resolution(None, Source.REJECTED)
        self._remembered[key] = identifier
        return Resolution(identifier, Source.WHOAMI)

    # One line when Synapse goes and one when it comes back, not one per request.

    def _note_unavailable(self, reason: Exception) -> None:
        if self._synapse_available:
            logger.warning("Synapse cannot be asked, routing by token: %s", reason)
        self._synapse_available = False

    def _note_available(self) -> None:
        if not self._synapse_available:
            logger.info("Synapse can be asked again")
        self._synapse_available = True


def _fallback(key: bytes, token: bytes) -> Resolution:
    localpart = tokens.native_localpart(token)
    if localpart is not None:
        try:
            return Resolution(identifiers.from_localpart(localpart), Source.TOKEN)
        except ValueError:
            pass  # the checksum holds by accident or malice; route it like any other token
    return Resolution(identifiers.from_fingerprint(key), Source.FINGERPRINT)
