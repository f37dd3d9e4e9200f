"""A few requests as nginx sends them: many known users, some new, some wrong."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx

from tests.fake_synapse import FakeSynapse

# So many rounds a second; what a round sends is the mix's business.
_ROUNDS = 20

Mix = Callable[["Load"], list[str | None]]
"""Returns the tokens of one round's requests, None for a request without one."""


@dataclass
class Load:
    """Sends requests to a router's ``host:port`` until it is stopped; the router may be away."""

    address: str
    synapse: FakeSynapse
    mix: Mix
    rng: random.Random = field(default_factory=lambda: random.Random(6))
    users: int = 0
    known: list[str] = field(default_factory=list)
    sent: int = 0
    started: float = field(default_factory=time.monotonic)

    def someone_new(self) -> str:
        """Return a token that Synapse knows and the router does not."""
        self.users += 1
        token = f"token-{self.users}"
        self.synapse.owners[token] = f"@user{self.users}:example.org"
        self.known.append(token)
        return token

    def someone_known(self) -> str:
        """Return a token that was sent before."""
        return self.rng.choice(self.known)

    def nobody(self) -> str:
        """Return a token that Synapse does not know."""
        return f"wrong-{self.rng.randrange(10**9)}"

    def run(self, stop: threading.Event) -> None:
        """Send rounds until ``stop`` is set."""
        with httpx.Client(base_url=f"http://{self.address}", timeout=5) as client:
            while not stop.wait(1 / _ROUNDS):
                for token in self.mix(self):
                    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                    with suppress(httpx.TransportError):
                        client.get("/resolve", headers=headers)
                        self.sent += 1


def ordinary(load: Load) -> list[str | None]:
    """Return what a small deployment sends: nearly always somebody who is known."""
    if not load.known:
        return [load.someone_new()]
    tokens: list[str | None] = [load.someone_known() for _ in range(4)]
    if load.rng.random() < 0.3:
        tokens.append(load.someone_new())
    if load.rng.random() < 0.1:
        tokens.append(load.nobody())
    if load.rng.random() < 0.1:
        tokens.append(None)
    return tokens


@contextmanager
def loaded(address: str, synapse: FakeSynapse, mix: Mix = ordinary) -> Iterator[Load]:
    """Send requests to the router at ``host:port`` while the context lasts."""
    load = Load(address, synapse, mix)
    stop = threading.Event()
    thread = threading.Thread(target=load.run, args=(stop,))
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()
