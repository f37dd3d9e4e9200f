"""What Synapse answers to whoami: an owner, a rejection, or a failure and its kind."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

# An answer is about 100 bytes. Whatever listens there instead, this much of it is read.
_LONGEST_ANSWER = 64 * 1024

# Statuses that are about the server and not about what it was asked: RFC 6585, section 4, and
# RFC 9110, section 15.6.
_AWAY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class WhoamiUnavailable(Exception):  # noqa: N818  (the name says the consequence)
    """Synapse cannot be asked at the moment; says why, never with a token in it.

    ``retry_after`` is how many seconds it wants to be left alone, None if it did not say.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Failed(WhoamiUnavailable):
    """The answer is of no use, which may be due to what was asked."""


class NoAnswer(Failed):
    """There was none, which may be due to what was asked, too."""


class LeftAlone(WhoamiUnavailable):
    """Nobody was asked: every URL has failed too often, and rests."""


class TokenUnanswerable(WhoamiUnavailable):
    """Synapse fails over this token, though it can be asked about others."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose token it is. A token without a device may be an application service's."""

    user_id: str
    has_device: bool = True


async def read(response: httpx.Response) -> Owner | None:
    """Return the owner that a response names, None for a rejection; raises WhoamiUnavailable."""
    return _owner(response, await _body(response))


async def _body(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _LONGEST_ANSWER:
            raise Failed(f"answered more than {_LONGEST_ANSWER} bytes")
    return body


def _owner(response: httpx.Response, body: bytes) -> Owner | None:
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return None
    reason = f"answered {response.status_code}"
    if response.status_code in _AWAY:
        raise WhoamiUnavailable(reason, retry_after=_retry_after(response))
    if response.status_code != HTTPStatus.OK:
        raise Failed(reason)
    try:
        answer = json.loads(body)
        user_id = answer["user_id"]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Failed("answered without a user_id") from exc
    if not isinstance(user_id, str):
        raise Failed("answered with a user_id that is no text")
    return Owner(user_id, has_device=answer.get("device_id") is not None)


def _retry_after(response: httpx.Response) -> float | None:
    """Return for how many seconds the server wants to be left alone, if it does.

    See ``Retry-After`` in RFC 9110, section 10.2.3: seconds, or a date.
    """
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date; a date without a zone
        # Too many requests is a wish to rest, though not for how long.
        return 0.0 if response.status_code == HTTPStatus.TOO_MANY_REQUESTS else None
