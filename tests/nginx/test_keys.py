"""Within a pool: whose requests, or which room's, go to the same worker."""

import http.client
import json
from contextlib import ExitStack, closing

import pytest

from tests.fake_synapse import FakeSynapse, served
from tests.nginx.conftest import USERS, new_directory
from tests.stack.nginx import Nginx

CLIENT = "/_matrix/client/v3"


@pytest.fixture(scope="module")
def workers():
    """Return the addresses of two stand-ins, each of which answers with its name."""
    with ExitStack() as stack:
        yield [stack.enter_context(served(FakeSynapse(name))) for name in ("one", "two")]


@pytest.fixture(scope="module")
def start(workers, pools, router):
    """Return a function that starts an nginx in which both workers serve these pools."""
    with ExitStack() as stack:

        def start(*names, edits=()):
            upstreams = {
                "whoami_router": [router.address],
                "synapse_main": [pools["main"].address],
                **{f"synapse_{name}": workers for name in names},
            }
            return stack.enter_context(Nginx(new_directory(stack), upstreams, edits=edits))

        yield start


@pytest.fixture(scope="module")
def nginx(start):
    return start(
        *("event_creator", "rooms", "pagination", "typing", "receipts", "federation_inbound"),
        *("account_data", "push_rules", "device_lists"),
    )


def server(nginx, path, method="GET", token=None, source="127.0.0.1"):
    """Return which worker answers; asked with http.client, which changes nothing in a path."""
    with closing(http.client.HTTPConnection(nginx.address, source_address=(source, 0))) as client:
        client.request(method, path, headers={"authorization": f"Bearer {token}"} if token else {})
        return json.load(client.getresponse())["server"]


OF_A_ROOM = [
    ("PUT", f"{CLIENT}/rooms/<room>/send/m.room.message/1"),
    ("GET", f"{CLIENT}/rooms/<room>/state/m.room.name"),
    ("POST", f"{CLIENT}/rooms/<room>/join"),
    ("POST", f"{CLIENT}/join/<room>"),
    ("POST", f"{CLIENT}/knock/<room>"),
    ("PUT", f"{CLIENT}/rooms/<room>/typing/@alice:example.org"),
    ("POST", f"{CLIENT}/rooms/<room>/receipt/m.read/$event"),
    ("GET", f"{CLIENT}/rooms/<room>/messages"),
    ("GET", "/_matrix/client/api/v1/rooms/<room>/messages"),
    ("GET", f"{CLIENT}/rooms/<room>/members"),
    ("GET", f"{CLIENT}/rooms/<room>/event/$event"),
    ("GET", "/_matrix/client/unstable/org.matrix.msc2432/rooms/<room>/aliases"),
    ("GET", "/_matrix/client/v1/rooms/<room>/hierarchy"),
    ("GET", "/_matrix/client/v1/room_summary/<room>"),
    ("GET", "/_matrix/client/unstable/im.nheko.summary/summary/<room>"),
]


def spellings(number):
    """Return ways to write one room ID in a path; every third has no server in it."""
    name = f"room-{number}_" if number % 3 else f"31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3og{number}"
    if number % 3 == 0:
        return [f"!{name}", f"%21{name}"]
    return [
        f"!{name}:example.org",
        f"%21{name}:example.org",
        f"!{name}%3Aexample.org",
        f"%21{name}%3aexample.org",
        f"%21{name}%3Aexample%2Eorg",
        f"%21{name}%3Aexample.org".replace("room", "%72oom"),
    ]


@pytest.mark.parametrize(("method", "path"), OF_A_ROOM, ids=[path for _, path in OF_A_ROOM])
def test_requests_about_a_room_reach_one_worker_however_it_is_written(nginx, method, path):
    reached = [
        {server(nginx, path.replace("<room>", room), method) for room in spellings(number)}
        for number in range(12)
    ]
    assert all(len(servers) == 1 for servers in reached)
    assert set.union(*reached) == {"one", "two"}


def test_all_that_is_sent_to_a_room_and_read_of_it_has_the_same_key(nginx):
    for number in range(6):
        room = spellings(number)[0]
        assert len({server(nginx, path.replace("<room>", room), m) for m, path in OF_A_ROOM}) == 1


def test_room_is_found_by_its_alias_too(nginx):
    for number in range(8):
        spelt = (f"%23room{number}:example.org", f"%23room{number}%3Aexample.org")
        assert len({server(nginx, f"{CLIENT}/join/{alias}", "POST") for alias in spelt}) == 1


def test_other_server_reaches_one_worker_by_its_address(nginx):
    reached = [
        {server(nginx, f"/_matrix/federation/v1/send/{n}", "PUT", source=source) for n in range(4)}
        for source in (f"127.0.0.{host}" for host in range(2, 18))
    ]
    assert all(len(servers) == 1 for servers in reached)
    assert set.union(*reached) == {"one", "two"}


@pytest.mark.parametrize(
    "path", [f"{CLIENT}/user/@alice:example.org/account_data/m.direct", f"{CLIENT}/pushrules/"]
)
def test_what_users_read_of_their_own_they_read_from_one_worker(nginx, path):
    reached = [
        {server(nginx, path, token=f"token-{user}-{device}") for device in range(3)}
        for user in USERS
    ]
    assert all(len(servers) == 1 for servers in reached)
    assert set.union(*reached) == {"one", "two"}


def test_device_reaches_one_worker_by_its_token(nginx):
    path = f"{CLIENT}/devices"
    reached = [{server(nginx, path, token=f"unknown-{n}") for _ in range(4)} for n in range(12)]
    assert all(len(servers) == 1 for servers in reached)
    assert set.union(*reached) == {"one", "two"}


def test_requests_without_a_key_take_turns(start):
    nginx = start("client_reader", "keys", "login")
    for path in (f"{CLIENT}/capabilities", f"{CLIENT}/keys/query", f"{CLIENT}/login"):
        servers = [server(nginx, path, token=f"token-{USERS[0]}-0") for _ in range(20)]
        # Each of nginx's own workers counts for itself.
        assert min(servers.count(name) for name in ("one", "two")) >= 5
