"""What stands in for Whoami, and what the tests of the resolver say often."""

import asyncio

from whoami_router.resolver import Resolution, Source
from whoami_router.tokens import fingerprint
from whoami_router.whoami import Caller, Owner

CALLER = Caller()


class Lookup:
    """Answers from ``owners``; while ``gate`` is not set, it waits.

    ``services`` are the tokens of application services, each with the users it may act for, its
    own first.
    """

    def __init__(self, owners):
        self.owners = owners
        self.services = {}
        self.without_device = set()
        self.asked = []
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure = None

    async def __call__(self, token, caller, user_id=None):
        self.asked.append((token, caller) if user_id is None else (token, caller, user_id))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.failure:
            raise self.failure
        if token in self.services:
            users = self.services[token]
            user_id = users[0] if user_id is None else user_id
            return Owner(user_id, has_device=False) if user_id in users else None
        user_id = self.owners.get(token)
        return user_id and Owner(user_id, has_device=token not in self.without_device)

    @property
    def tokens(self):
        return [token for token, *_ in self.asked]


def confirmed(identifier, source):
    """Return a resolution that Synapse has confirmed, now or earlier."""
    return Resolution(identifier, source, repeatable=True)


def fallback(token):
    return Resolution("sha256:" + fingerprint(token).hex(), Source.FINGERPRINT)


async def settle():
    """Let every task run until it waits for something outside."""
    for _ in range(50):
        await asyncio.sleep(0)
