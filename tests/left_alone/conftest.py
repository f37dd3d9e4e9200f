"""Two processes of a Synapse, and a lookup that asks them; its clock is the test's."""

from contextlib import asynccontextmanager

import httpx
import pytest

from tests.clock import Clock
from tests.fake_synapse import FakeSynapse
from tests.left_alone.asking import ALICE
from whoami_router.whoami import Whoami


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def synapses():
    """Two processes of one Synapse, at http://one and http://two."""
    return {name: FakeSynapse(name, owners={"a": ALICE.user_id}) for name in ("one", "two")}


@pytest.fixture
def one(synapses):
    return synapses["one"]


@pytest.fixture
def two(synapses):
    return synapses["two"]


@pytest.fixture
def asking(synapses, clock):
    """Returns a Whoami for the named processes."""

    @asynccontextmanager
    async def start(*names, seconds=0.2):
        whoami = Whoami(
            [f"http://{name}" for name in names],
            timeout=seconds,
            transport=lambda url: httpx.ASGITransport(synapses[url.removeprefix("http://")]),
            clock=clock,
        )
        yield whoami
        await whoami.aclose()

    return start
