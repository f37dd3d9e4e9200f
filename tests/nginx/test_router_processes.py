"""Several processes of whoami-router behind one nginx."""

import signal
import time
from contextlib import ExitStack

import pytest

from tests.fake_synapse import WHOAMI, served
from tests.nginx.conftest import USERS, FakeRouter
from tests.stack.nginx import DEBUG_HEADERS
from tests.stack.process import wait_until
from tests.stack.router import Router

SYNC = "/_matrix/client/v3/sync?since=s1"
TOKENS = {f"token-{user}-{device}": user for user in USERS for device in range(3)}


@pytest.fixture
def routers(main, tmp_path):
    with ExitStack() as stack:
        routers = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            routers.append(Router(tmp_path / name, f"http://{main.address}"))
            stack.enter_context(routers[-1])
        yield routers


@pytest.fixture
def site(make_site, routers):
    addresses = [router.address for router in routers]
    return make_site(DEBUG_HEADERS, router_address=addresses)


def sync_all(site):
    """Sync with every token; return how many took longer than a second."""
    slow = 0
    for token, user in TOKENS.items():
        for path, header in ((SYNC, token), (f"{SYNC}&access_token={token}", None)):
            start = time.monotonic()
            response = site.get(path, header)
            slow += time.monotonic() - start > 1
            assert response.status_code == 200
            assert response.headers.get("x-user-identifier") == user
    return slow


def lookups(main):
    return [request for request in main.requests if request.url.path == WHOAMI]


def test_synapse_is_asked_once_about_each_token(site, main):
    for _ in range(3):
        sync_all(site)
    assert len(lookups(main)) == len(TOKENS)


def test_one_more_process_is_asked_only_about_the_tokens_that_it_takes_over(make_site):
    """The others would have to ask Synapse again about all that moved to them."""
    with ExitStack() as stack:
        fakes = [FakeRouter() for _ in range(3)]
        addresses = [stack.enter_context(served(fake)) for fake in fakes]

        def asked(count):
            site = make_site(router_address=addresses[:count])
            for token in TOKENS:
                site.get(SYNC, token)
            found = {}
            for number, fake in enumerate(fakes):
                for request in fake.requests:
                    found[request.headers["authorization"]] = number
                fake.requests.clear()
            return found

        before, after = asked(2), asked(3)
    assert len(before) == len(after) == len(TOKENS)
    moved = {token for token in before if before[token] != after[token]}
    assert moved == {token for token in after if after[token] == 2} != set()


def test_each_does_for_the_other(site, routers, main):
    sync_all(site)
    routers[0].kill()
    assert sync_all(site) == 0
    main.requests.clear()
    routers[0].start()

    def back():  # it has forgotten its tokens, so Synapse is asked about them again
        sync_all(site)
        return lookups(main)

    wait_until(back, "nginx asks the first one again")
    routers[1].kill()
    assert sync_all(site) == 0


def test_one_that_hangs_costs_a_few_requests_their_time(site, routers):
    routers[0].send_signal(signal.SIGSTOP)
    # nginx's three seconds, once in each of its processes; then it is left out for ten.
    assert 1 <= sync_all(site) <= 8
