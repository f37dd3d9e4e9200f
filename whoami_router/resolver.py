"""Says where a token's request goes: from memory, by a lookup, or by a fallback."""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol, TypeVar

from cachetools import LRUCache

from whoami_router import identifiers, tokens
from whoami_router.defects import Defects
from whoami_router.whoami import Caller, Owner, TokenUnanswerable, WhoamiUnavailable

logger = logging.getLogger(__name__)

# An answer in use is refreshed in the last part of its time: from between a quarter and a
# sixteenth of it on. Clients that wait for news ask about every 30 s, so with --cache-ttl from
# eight minutes on none is missed; and tokens that were all new at once, after a restart, are not
# all asked about at once again.
_REFRESHED_EARLIEST, _REFRESHED_LATEST = 1 / 4, 1 / 16

# Refreshes leave this share of the lookups to tokens that nobody knows yet.
_KEPT_FOR_NEW_TOKENS = 3 / 4

# Seconds between two lines about lookups that were shed.
_SHED_LOG_INTERVAL = 60


_Remembered = TypeVar("_Remembered")


class Lookup(Protocol):
    """Returns a token's owner, None for a rejected token, or raises WhoamiUnavailable."""

    async def __call__(
        self, token: bytes, caller: Caller, user_id: str | None = None
    ) -> Owner | None:
        """See Whoami.owner."""


class Source(StrEnum):
    """How an identifier was found, as ``X-User-Identifier-Source`` says it."""

    CACHE = "cache"
    WHOAMI = "whoami"
    STALE = "stale"
    TOKEN = "token"  # noqa: S105  (a word of the protocol)
    FINGERPRINT = "fingerprint"
    REJECTED = "rejected"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The identifier to route by, or None, and where it comes from.

    ``repeatable`` says whether the same request may be answered the same for a while, by
    whoever remembers it: Synapse itself named this user.
    """

    identifier: str | None
    source: Source
    repeatable: bool = False


_REJECTED = Resolution(None, Source.REJECTED)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is remembered of a token whose owner is known; one each, so it is small."""

    identifier: str
    fresh_until: float
    acts_for_others: bool


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What is remembered of a token without an owner: rejected, or an error of Synapse."""

    until: float
    rejected: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """How many tokens are remembered now and at most, and how many had to make room so far."""

    count: int
    limit: int
    evicted: int


class _Recent(LRUCache[bytes, _Remembered]):
    """What was used last, by fingerprint; counts what had to make room."""

    # Not a cache that drops what has expired: the least recently used goes first anyway, and the
    # order of expiry would cost a fifth more memory.

    evicted = 0

    def popitem(self) -> tuple[bytes, _Remembered]:
        """Forget the least recently used, as the cache does when it is full."""
        self.evicted += 1
        return super().popitem()

    @property
    def memory(self) -> Memory:
        return Memory(len(self), int(self.maxsize), self.evicted)


@dataclass(frozen=True, slots=True, repr=False)  # it holds a token
class _Question:
    key: bytes
    token: bytes
    caller: Caller
    user_id: str | None = None


class Resolver:
    """Resolves tokens to identifiers and remembers the answers.

    A token never changes its owner, so a remembered answer may be moot (the token was revoked,
    which is Synapse's to say) but is never wrong. At most ``cache_size`` owners are remembered,
    by fingerprint only, the least recently used forgotten first. An answer is fresh for
    ``cache_ttl`` seconds, and usable for ``stale_ttl`` more while Synapse is unavailable.
    Tokens that Synapse rejects, or fails over, are remembered apart, ``rejected_size`` of them
    for ``rejected_ttl`` seconds, so that they evict no owner. At most ``max_lookups`` lookups
    run at once. With ``decode_native_tokens`` a token that Synapse issued itself is not looked
    up.

    ``clock`` returns seconds that never go backwards.
    """

    def __init__(  # noqa: PLR0913  (each by its name)
        self,
        lookup: Lookup,
        *,
        cache_size: int,
        cache_ttl: float,
        stale_ttl: float,
        rejected_size: int,
        rejected_ttl: float,
        max_lookups: int,
        decode_native_tokens: bool,
        clock: Callable[[], float],
    ) -> None:
        self._lookup = lookup
        self._cache_ttl = cache_ttl
        self._refreshed_earliest = cache_ttl * _REFRESHED_EARLIEST
        self._stale_ttl = stale_ttl
        self._rejected_ttl = rejected_ttl
        self.max_lookups = max_lookups
        self._max_for_refreshes = max_lookups - int(max_lookups * _KEPT_FOR_NEW_TOKENS)
        self._decode_native_tokens = decode_native_tokens
        self._clock = clock
        self._answers: _Recent[_Answer] = _Recent(cache_size)
        self._refusals: _Recent[_Refusal] = _Recent(rejected_size)
        self._in_flight: dict[bytes, asyncio.Task[Resolution]] = {}
        self._turn = asyncio.Lock()
        self._defects = Defects(logger, clock=clock)
        self.shed = 0
        """How many lookups there was no room for; their requests were routed by the fallback."""
        self._shed_logged = 0
        self._shed_logged_at = -math.inf

    @property
    def lookups_in_flight(self) -> int:
        """How many lookups run now."""
        return len(self._in_flight)

    @property
    def owners(self) -> Memory:
        """The tokens whose owner is remembered."""
        return self._answers.memory

    @property
    def rejections(self) -> Memory:
        """The tokens that Synapse rejected, or failed over."""
        return self._refusals.memory

    def remembered(self, token: bytes) -> str | None:
        """Return the identifier, if it is all there is to do about this token, else None.

        That is: its owner is known for a good while yet, and acts for nobody else. ``resolve``
        would say the same, with Source.CACHE; this is for speed.
        """
        key = tokens.fingerprint(token)
        try:
            answer = self._answers[key]
        except KeyError:
            return None
        if answer.acts_for_others:
            return None
        if answer.fresh_until - self._clock() < self._refreshed_earliest:
            return None
        if logger.isEnabledFor(logging.DEBUG):
            _log(key, Resolution(answer.identifier, Source.CACHE))
        return answer.identifier

    async def resolve(
        self, token: bytes | None, caller: Caller, uri: bytes | None = None
    ) -> Resolution:
        """Return where this token's request goes; waits hardly longer than one lookup takes.

        (Two, the first time that an application service acts for a user.) ``uri`` is what the
        client asked for.
        """
        if token is None:
            return Resolution(None, Source.NONE)
        key = tokens.fingerprint(token)
        resolution = _decode(token) if self._decode_native_tokens else None
        if resolution is None:
            question = _Question(key, token, caller)
            resolution = await self._resolve(question)
            answer = self._answers.get(key)
            if uri is not None and answer is not None and answer.acts_for_others:
                resolution = await self._resolve_user(question, uri, resolution)
        _log(key, resolution)
        return resolution

    async def _resolve_user(
        self, question: _Question, uri: bytes, service: Resolution
    ) -> Resolution:
        """Return where a request goes that an application service may make for one of its users.

        See "Identity assertion" in the Matrix application service API.
        """
        user_id = tokens.asserted_user_id(uri)
        if user_id is None:
            return service
        try:
            identifiers.from_user_id(user_id)
        except ValueError:
            return replace(service, repeatable=False)  # nobody's; Synapse will say so
        key = tokens.fingerprint(question.key + user_id.encode())
        user = await self._resolve(replace(question, key=key, user_id=user_id))
        if user.source in (Source.CACHE, Source.WHOAMI, Source.STALE):
            return user
        # It may not act for this user, or nobody can be asked.
        return replace(service, repeatable=False)

    async def _resolve(self, question: _Question) -> Resolution:
        """Return the answer that is remembered, or ask for one."""
        now = self._clock()
        answer = self._answers.get(question.key)
        if answer is not None and now < answer.fresh_until:
            if answer.fresh_until - now < self._refreshed_earliest:
                self._refresh(question, answer, now)
            return Resolution(answer.identifier, Source.CACHE, repeatable=True)
        refusal = self._refusal(question, now)
        if refusal is not None:
            return _REJECTED if refusal.rejected else self._fallback(question)
        if not tokens.is_askable(question.token):
            return self._fallback(question)
        lookup = self._start_lookup(question, at_most=self.max_lookups)
        if lookup is None:
            self._note_shed()
            return self._fallback(question)
        # Through a shield: the first caller may go away while others wait for the same answer.
        return await asyncio.shield(lookup)

    def _refresh(self, question: _Question, answer: _Answer, now: float) -> None:
        """Ask in the background, so that the requests to come need not wait."""
        # By the fingerprint: each token always at the same point, all of them spread evenly.
        share = question.key[0] / 255
        from_ = _REFRESHED_LATEST + (_REFRESHED_EARLIEST - _REFRESHED_LATEST) * share
        if answer.fresh_until - now > self._cache_ttl * from_:
            return
        if self._refusal(question, now) is None:  # or each request would break Synapse again
            self._start_lookup(question, at_most=self._max_for_refreshes)

    def _start_lookup(
        self, question: _Question, *, at_most: int
    ) -> asyncio.Task[Resolution] | None:
        """Return the lookup for this token that is running, or a new one if there is room."""
        lookup = self._in_flight.get(question.key)
        if lookup is None and len(self._in_flight) < at_most:
            # A task of its own, whatever becomes of its callers.
            lookup = asyncio.create_task(self._look_up(question))
            self._in_flight[question.key] = lookup
            lookup.add_done_callback(lambda _: self._in_flight.pop(question.key))
        return lookup

    async def _look_up(self, question: _Question) -> Resolution:
        # At most one lookup starts in a round of the event loop. All at once, sixty of them would
        # be a round of many milliseconds, and whoever asks about a remembered token would wait.
        async with self._turn:
            await asyncio.sleep(0)
        try:
            owner = await self._lookup(question.token, question.caller, question.user_id)
            identifier = None if owner is None else identifiers.from_user_id(owner.user_id)
        except (WhoamiUnavailable, ValueError) as exc:
            # Not more than debug: there may be one for each request. When Synapse is away, that
            # is said once, where it is noticed.
            logger.debug(
                "no answer", extra={"fingerprint": question.key.hex()[:12], "reason": str(exc)}
            )
            if isinstance(exc, TokenUnanswerable):
                self._note_refusal(question, rejected=False)
            return self._fallback(question)
        except Exception as exc:  # noqa: BLE001  (a defect, of ours or of a library)
            self._defects.report("error during a lookup, please report", exc)
            return self._fallback(question)
        if owner is None or identifier is None:
            self._answers.pop(question.key, None)
            self._note_refusal(question, rejected=True)
            return _REJECTED
        if question.user_id not in (None, owner.user_id):
            self._note_ordinary(question.token)
            return Resolution(identifier, Source.WHOAMI, repeatable=True)
        before = self._answers.get(question.key)
        self._answers[question.key] = _Answer(
            identifier,
            self._clock() + self._cache_ttl,
            # What is known to be no service's stays so, also when it is refreshed.
            acts_for_others=not owner.has_device and (before is None or before.acts_for_others),
        )
        return Resolution(identifier, Source.WHOAMI, repeatable=True)

    def _note_ordinary(self, token: bytes) -> None:
        # No application service's: Synapse ignored the user_id. An administrator's "login as"
        # token has no device either, and must not cost a lookup for each user_id there is.
        key = tokens.fingerprint(token)
        answer = self._answers.get(key)
        if answer is not None:
            self._answers[key] = replace(answer, acts_for_others=False)

    def _refusal(self, question: _Question, now: float) -> _Refusal | None:
        """Return what is remembered of a token that was refused not long ago."""
        refusal = self._refusals.get(question.key)
        return refusal if refusal is not None and now < refusal.until else None

    def _note_refusal(self, question: _Question, *, rejected: bool) -> None:
        self._refusals[question.key] = _Refusal(self._clock() + self._rejected_ttl, rejected)

    def _fallback(self, question: _Question) -> Resolution:
        """Return where the request goes without an answer of Synapse."""
        answer = self._answers.get(question.key)
        if answer is not None and self._clock() < answer.fresh_until + self._stale_ttl:
            return Resolution(answer.identifier, Source.STALE)
        return _decode(question.token) or Resolution(
            identifiers.from_fingerprint(question.key), Source.FINGERPRINT
        )

    def _note_shed(self) -> None:
        self.shed += 1
        now = self._clock()
        if now >= self._shed_logged_at + _SHED_LOG_INTERVAL:
            logger.warning(
                "too many lookups at once, requests are routed by their fallback",
                extra={"max_lookups": self.max_lookups, "lookups": self.shed - self._shed_logged},
            )
            self._shed_logged, self._shed_logged_at = self.shed, now


def _log(key: bytes, resolution: Resolution) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(
            "resolved",
            extra={
                "fingerprint": key.hex()[:12],
                "identifier": _shown(resolution.identifier),
                "source": resolution.source.value,
            },
        )


def _shown(identifier: str | None) -> str | None:
    """Return a user's identifier, or as much of a fingerprint as the log has of others."""
    if identifier is None or ":" not in identifier:
        return identifier
    kind, _, digits = identifier.partition(":")
    return f"{kind}:{digits[:12]}"


def _decode(token: bytes) -> Resolution | None:
    """Return the owner that stands in a token, if it is one that Synapse issued itself."""
    localpart = tokens.native_localpart(token)
    if localpart is None:
        return None
    try:
        return Resolution(identifiers.from_localpart(localpart), Source.TOKEN)
    except ValueError:  # the checksum holds by accident or malice; like any other token
        return None
