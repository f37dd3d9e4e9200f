"""What a ring answers; that nginx does the same is in tests/nginx/test_ring.py."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoami_router.ring import Pick, Ring, Server, key_hash

A, B, C = (Server(f"127.0.0.1:{port}") for port in (8083, 8084, 8085))

ALICE = 663665735
PICKED = [
    ([A, B], "alice", Pick(ALICE, A.text, 682277820, then=B.text)),
    ([A], "alice", Pick(ALICE, A.text)),
    ([A], "", Pick(0, A.text)),
    ([A, B], "", Pick(0, None)),
    ([], "alice", Pick(ALICE, None)),
    ([Server("x", down=True)], "alice", Pick(ALICE, None)),
    ([Server("x", backup=True)], "alice", Pick(ALICE, None)),
]


@pytest.mark.parametrize(("servers", "key", "pick"), PICKED)
def test_pick_says_where_and_why(servers, key, pick):
    assert Ring(servers).pick(key.encode()) == pick


def test_pick_names_the_servers_that_are_down_and_passed_by():
    down = Server(A.text, down=True)
    pick = Ring([down, B]).pick(b"alice")
    assert pick.down == (A.text,)
    assert pick.server == B.text
    assert pick.point == Ring([A, B]).pick(b"alice").point


def test_where_all_points_are_down_the_ones_looked_at_are_named():
    pick = Ring([Server(A.text, down=True), Server(B.text, down=True)]).pick(b"alice")
    assert pick.server is None
    assert set(pick.down) == {A.text, B.text}


def test_users_stay_when_a_server_comes_but_for_those_that_it_takes_over():
    before, after = Ring([A, B]), Ring([A, B, C])
    for number in range(1000):
        key = f"user{number}".encode()
        old, new = before.pick(key).server, after.pick(key).server
        assert new in {old, C.text}


def test_order_of_the_lines_picks_nobody_another_server():
    for number in range(1000):
        key = f"user{number}".encode()
        assert Ring([A, B, C]).pick(key).server == Ring([C, A, B]).pick(key).server


texts = st.sampled_from([A.text, B.text, C.text]) | st.text(max_size=20)
server = st.builds(Server, texts, st.integers(1, 5), down=st.booleans(), backup=st.booleans())
servers = st.lists(server, max_size=6)
keys = st.lists(st.binary(max_size=300), max_size=20)


@given(servers, keys)
def test_ring_answers_whatever_the_servers_and_keys_are(servers, keys):
    ring = Ring(servers)
    up = {one.text for one in servers if not one.down and not one.backup}
    for key in keys:
        pick = ring.pick(key)
        order = list(ring.order(key))
        assert [pick.server, pick.then][: len(order)] == order[:2]
        assert pick.server in up | {None}
        assert set(order) <= up
        assert not up.intersection(pick.down)


@given(servers, servers, keys)
def test_many_users_go_where_each_of_them_goes(before, after, keys):
    keys = [key for key in keys if key]
    old, new = Ring(before), Ring(after)
    each = [(old.pick(key).server, new.pick(key).server) for key in keys]
    hashes = [key_hash(key) for key in keys]
    assert old.moves(new, hashes) == Counter(each)
    assert old.counts(hashes) == Counter(one for one, _ in each)
