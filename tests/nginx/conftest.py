"""The shipped nginx files under a real nginx, between a client and stand-ins for Synapse."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.fake_synapse import FakeSynapse, served
from tests.stack.nginx import POOLS, Nginx
from tests.stack.router import Router

USERS = [f"user{number}" for number in range(20)]


@dataclass
class FakeRouter:
    """An ASGI application in the router's place, which answers what a test wants.

    ``answer`` is a response, or makes one of a request; ``held`` holds it back.
    """

    answer: Response | Callable[[Request], Response] = field(
        default_factory=lambda: Response(status_code=204)
    )
    requests: list[Request] = field(default_factory=list)
    held: bool = False

    async def __call__(self, scope, receive, send):
        request = Request(scope)
        self.requests.append(request)
        while self.held:  # noqa: ASYNC110  (set by another thread, for which no Event is safe)
            await asyncio.sleep(0.01)
        answer = self.answer if isinstance(self.answer, Response) else self.answer(request)
        await answer(scope, receive, send)


@dataclass
class Site:
    """An nginx, and what tests want to know of it."""

    nginx: Nginx
    client: httpx.Client

    def get(self, path, token=None, **headers):
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return self.client.get(path, headers=headers)

    def server(self, path, token=None, **headers):
        """Return the name of the stand-in that the request reached."""
        response = self.get(path, token, **headers)
        assert response.status_code == 200
        return response.json()["server"]


@pytest.fixture(scope="session")
def pools():
    """Return stand-ins by name, each with an ``address``: main, and two workers per pool.

    The main one knows three tokens of each user.
    """
    names = ["main", "sync-1", "sync-2", "initial-1", "initial-2"]
    with ExitStack() as stack:
        pools = {name: FakeSynapse(name) for name in names}
        for synapse in pools.values():
            synapse.address = stack.enter_context(served(synapse))
        pools["main"].owners = {
            f"token-{user}-{device}": f"@{user}:example.org"
            for user in USERS
            for device in range(3)
        }
        yield pools


@pytest.fixture
def main(pools):
    return pools["main"]


@pytest.fixture(autouse=True)
def _untouched_pools(pools):
    for synapse in pools.values():
        synapse.requests.clear()
    yield
    for synapse in pools.values():
        synapse.held, synapse.answer = False, None


@pytest.fixture(scope="session")
def router(pools, tmp_path_factory):
    directory = tmp_path_factory.mktemp("router")
    with Router(directory, f"http://{pools['main'].address}") as router:
        yield router


@pytest.fixture
def fake_router():
    fake = FakeRouter()
    with served(fake) as fake.address:
        yield fake
        fake.held = False


@pytest.fixture
def make_site(pools, router):
    """Return a function that starts an nginx, with edits to its files and other addresses."""
    with ExitStack() as stack:

        def make(*edits, router_address=router.address, initial=None):
            routers = [router_address] if isinstance(router_address, str) else router_address
            initial = initial or [pools[name].address for name in ("initial-1", "initial-2")]
            nginx = Nginx(
                new_directory(stack),
                {
                    "whoami_router": routers,
                    "synapse_main": [pools["main"].address],
                    "synapse_sync": [pools[name].address for name in ("sync-1", "sync-2")],
                    "synapse_initial_sync": initial,
                },
                edits=edits,
            )
            stack.enter_context(nginx)
            client = httpx.Client(base_url=nginx.url, timeout=30)
            return Site(nginx, stack.enter_context(client))

        yield make


@pytest.fixture
def site(make_site):
    return make_site()


@pytest.fixture
def dead_address():
    """Return an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def hung_address():
    """Return an address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@dataclass
class Labelled:
    """An ASGI application that answers everything with its name and the URI that it was asked."""

    name: str

    async def __call__(self, scope, receive, send):
        query = scope["query_string"].decode()
        uri = scope["raw_path"].decode() + (f"?{query}" if query else "")
        await JSONResponse({"uri": uri}, headers={"X-Server": self.name})(scope, receive, send)


@pytest.fixture(scope="module")
def labelled():
    """Return the address of a stand-in for each pool, which answers with the pool's name."""
    with ExitStack() as stack:
        yield {pool: stack.enter_context(served(Labelled(pool))) for pool in POOLS}


@pytest.fixture(scope="module")
def start(labelled, router):
    """Return a function that starts an nginx with a worker for each pool, but for those named."""
    with ExitStack() as stack:

        def start(*edits, without=()):
            directory = new_directory(stack)
            upstreams = {
                f"synapse_{pool}": [address]
                for pool, address in labelled.items()
                if pool not in without
            }
            nginx = Nginx(
                directory,
                {"whoami_router": [router.address], **upstreams},
                edits=edits,
            )
            stack.enter_context(nginx)
            return stack.enter_context(httpx.Client(base_url=nginx.url, timeout=30))

        yield start


def arrives_at(client, path, method="GET"):
    """Return the pool that a labelled stand-in says it is, and see that the URI is as it was."""
    response = client.request(method, path)
    assert response.status_code == 200, response.text
    if method != "HEAD":
        assert response.json()["uri"] == path
    return response.headers["x-server"]


def new_directory(stack):
    """Return a directory that is removed with the stack.

    Not below pytest's, which is closed to the user that nginx's workers run as.
    """
    directory = Path(stack.enter_context(TemporaryDirectory(prefix="wr-site-")))
    directory.chmod(0o755)
    return directory
