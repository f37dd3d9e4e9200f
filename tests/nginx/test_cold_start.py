"""Two thousand devices sync at once, and the router knows none of them."""

import asyncio
import resource

import aiohttp
import pytest

from tests.stack.router import Router

pytestmark = pytest.mark.anyio

DEVICES = 2_000


@pytest.fixture(autouse=True)
def _many_files():
    """Lets the test have as many connections as it likes; a desktop allows it 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def cold_router(main, tmp_path):
    with Router(tmp_path, f"http://{main.address}") as running:
        yield running


async def test_no_request_fails_when_all_tokens_are_new(make_site, cold_router, main, monkeypatch):
    owners = {f"new-{number}": f"@user{number % 500}:example.org" for number in range(DEVICES)}
    monkeypatch.setattr(main, "owners", owners)
    monkeypatch.setattr(main, "most_in_flight", 0)
    site = make_site(router_address=cold_router.address)

    async def sync(session, token):
        headers = {"Authorization": f"Bearer {token}"}
        async with session.get("/_matrix/client/v3/sync?since=s1", headers=headers) as response:
            await response.read()
            return response.status

    async with aiohttp.ClientSession(
        site.nginx.url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(60),
    ) as session:
        statuses = await asyncio.gather(*(sync(session, token) for token in owners))
    assert statuses == [200] * DEVICES
    assert 64 <= len(main.requests) <= DEVICES  # all of them lookups: syncs go to the workers
    assert main.most_in_flight <= 64
