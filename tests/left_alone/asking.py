"""Asks about one token while Synapse fails, and waits for what happens then."""

import asyncio

from starlette.responses import Response

from whoami_router.whoami import Caller, Owner, WhoamiUnavailable

ALICE = Owner("@alice:example.org")
LONGEST_PAUSE = 10


def fail(synapse):
    synapse.answer = Response(status_code=502)


async def ask(whoami, times=1):
    """Ask so many times; return the answers, None for each time that there was none."""
    answers = []
    for _ in range(times):
        try:
            answers.append(await whoami.owner(b"a", Caller()))
        except WhoamiUnavailable:
            answers.append(None)
    return answers


async def settle():
    """Let every probe run until it waits for something outside."""
    for _ in range(20):
        await asyncio.sleep(0)


async def probe(whoami, clock):
    """Let the pause end, and one probe with it."""
    clock.now += LONGEST_PAUSE
    await ask(whoami)
    await happens(lambda: not whoami._probes)


async def happens(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (the condition is nobody's to announce)
            await asyncio.sleep(0.001)
