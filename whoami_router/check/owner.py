"""Looks whose token it is, by asking Synapse as a running router does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from whoami_router import identifiers, tokens
from whoami_router.check.findings import Finding, note, ok, quoted, wrong
from whoami_router.whoami import Caller, Owner, TokenUnanswerable, Whoami, WhoamiUnavailable

PART = "token"


@dataclass(frozen=True, slots=True)
class Asked:
    """What Synapse said: the findings, and the identifier if it named somebody."""

    findings: list[Finding]
    identifier: str | None = None


def ask(token: bytes, urls: Sequence[str], *, timeout: float) -> Asked:
    """Return whose token it is; ``urls`` are those at which Synapse answers.

    ``timeout`` is in seconds. No finding has the token in it.
    """
    if not urls:
        return Asked(
            [
                wrong(
                    PART,
                    "Synapse cannot be asked whose it is",
                    "correct first what is wrong with Synapse",
                )
            ]
        )
    try:
        owner = asyncio.run(_owner(token, urls, timeout))
    except TokenUnanswerable as exc:
        what = f"Synapse fails over this token: {quoted(str(exc))}"
        return Asked([wrong(PART, what, "see in Synapse's log why; try another token")])
    except WhoamiUnavailable as exc:
        what = f"Synapse does not say whose it is: {quoted(str(exc))}"
        return Asked([wrong(PART, what, "see in Synapse's log why, and try again")])
    if owner is None:
        return Asked(
            [wrong(PART, "Synapse rejects it", "log in anew, and take the token of that session")]
        )
    return _named(token, owner)


async def _owner(token: bytes, urls: Sequence[str], timeout: float) -> Owner | None:  # noqa: ASYNC109
    whoami = Whoami(urls, timeout=timeout)
    try:
        # Synapse records this as the device's, and so it says what it was.
        return await whoami.owner(token, Caller(user_agent=b"whoami-router check"))
    finally:
        await whoami.aclose()


def _named(token: bytes, owner: Owner) -> Asked:
    user = quoted(owner.user_id)
    try:
        identifier = identifiers.from_user_id(owner.user_id)
    except ValueError as exc:
        what = f"Synapse says that it is {user}'s, which is no user ID: {exc}"
        return Asked([wrong(PART, what, "see whether this is a Synapse at all")])
    localpart = tokens.native_localpart(token)
    if localpart is None:
        kind = "opaque: whose it is, only Synapse knows"
    elif identifiers.from_localpart(localpart) == identifier:
        kind = "native: it names the user, so it is known without Synapse, too"
    else:
        what = (
            f"it is {user}'s, but has the form of a token of Synapse's that names somebody else: "
            "without Synapse it goes to another worker"
        )
        return Asked([note(PART, what)], identifier)
    findings = [ok(PART, f"it is {user}'s, identifier {identifier} ({kind})")]
    if not owner.has_device:
        findings.append(
            note(PART, "no device has it: an application service's, or made by an administrator")
        )
    return Asked(findings, identifier)
