"""Where users are, and the command that says it."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import wait_until
from tests.test_tokens import NATIVE
from whoami_router import where
from whoami_router.nginx_conf import load
from whoami_router.nginx_pools import survey
from whoami_router.ring import Server

SHIPPED = Path(__file__).parents[1] / "nginx"
NGINX = str(SHIPPED / "nginx.conf")
A, B, C = (f"127.0.0.1:{port}" for port in (8083, 8084, 8085))
FINGERPRINT = "sha256:" + "0a" * 32

IDENTIFIERS = [
    ("@alice:example.org", "alice"),
    ("@alice:[::1]:8448", "alice"),
    ("@Bo b/c=:x", "Bo%20b%2Fc%3D"),
    ("alice", "alice"),
    ("zoë", "zo%C3%AB"),
    ("syt_alice", "syt_alice"),
    (FINGERPRINT, FINGERPRINT),
]


@pytest.mark.parametrize(("user", "identifier"), IDENTIFIERS)
def test_user_has_the_identifier_that_the_router_gives_nginx(user, identifier):
    assert where.identifier(user) == identifier


NO_USERS = [
    "",
    "@alice",
    "@:x",
    "a:b",
    "sha256:0A",
    "sha256:" + "0" * 63,
    "@a\0:x",
    "x" * 256,
    "\ud800",
]


@pytest.mark.parametrize("text", NO_USERS)
def test_what_is_no_user_is_refused(text):
    with pytest.raises(ValueError, match="is no user: needs @localpart:domain"):
        where.identifier(text)


def test_token_is_not_taken_for_a_user_and_not_repeated():
    token = NATIVE.decode()
    with pytest.raises(ValueError, match="is an access token") as refused:
        where.identifier(token)
    assert token not in str(refused.value)


@given(st.text())
def test_any_text_is_a_user_or_refused(text):
    try:
        assert where.identifier(text).isascii()
    except ValueError as exc:
        assert "\n" not in str(exc)  # noqa: PT017  (any text may be refused, or none)


@pytest.fixture(scope="module")
def pool():
    return survey(load(NGINX), ["synapse_sync"]).pools[0]


@pytest.fixture(scope="module")
def crowd():
    return where.Crowd(f"user{number}" for number in range(10_000))


def test_spread_counts_each_user_once(pool, crowd):
    spread = where.spread(pool, crowd)
    each = [where.place(pool, f"user{number}").pick.server for number in range(10_000)]
    assert [(one.server, one.users) for one in spread.shares] == [
        (A, each.count(A)),
        (B, each.count(B)),
    ]
    assert sum(one.part for one in spread.shares) == pytest.approx(1)
    assert [one.expected for one in spread.shares] == [0.5, 0.5]
    assert spread.elsewhere == 0
    most = max(one.users for one in spread.shares)
    assert spread.fullest == pytest.approx(most / 5000 - 1)
    assert spread.emptiest == pytest.approx(spread.fullest)


def test_repeated_user_counts_once(pool):
    crowd = where.Crowd(["alice", "bob", "alice"])
    assert len(crowd) == 2
    assert where.spread(pool, crowd).users == 2


def servers(*lines):
    return tuple(lines)


EXPECTED = [
    ((Server(A), Server(B, 3)), [0.25, 0.75]),
    ((Server(A), Server(B, down=True), Server(C)), [0.5, 0.0, 0.5]),
    ((Server(A), Server(B), Server(C, backup=True)), [0.5, 0.5]),
    ((Server(A), Server(A, 2), Server(B)), [2 / 3, 1 / 3]),
    ((Server(A, down=True),), [0.0]),
]


@pytest.mark.parametrize(("servers", "expected"), EXPECTED)
def test_share_is_expected_by_the_weights_of_those_that_are_up(pool, crowd, servers, expected):
    after = where.change(pool, crowd, servers).after
    assert [one.expected for one in after.shares] == pytest.approx(expected)
    assert [one.part for one in after.shares] == pytest.approx(expected, abs=0.1)
    assert after.elsewhere == (0 if any(expected) else 10_000)


def test_new_server_takes_its_share_and_moves_nobody_else(pool, crowd):
    change = where.change(pool, crowd, (*pool.servers, Server(C)))
    assert {new for _, new, _ in change.moves} == {C}
    [taken] = [one.users for one in change.after.shares if one.server == C]
    assert change.moved == taken
    assert [users for *_, users in change.moves] == sorted(
        (users for *_, users in change.moves), reverse=True
    )


CHANGES = [
    ({"add": [Server(C, 2)]}, [(A, 1), (B, 1), (C, 2)]),
    ({"remove": [A]}, [(B, 1)]),
    ({"weights": {B: 3}}, [(A, 1), (B, 3)]),
    ({"add": [Server(C)], "remove": [A, B], "weights": {C: 5}}, None),
    ({"add": [Server(C)], "remove": [A, B]}, [(C, 1)]),
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES)
def test_changes_are_made_to_the_servers_that_are_named(pool, changes, expected):
    changes = {"add": [], "remove": [], "weights": {}} | changes
    if expected is None:
        with pytest.raises(ValueError, match="has no server"):
            where.with_changes(pool.servers, **changes)
        return
    changed = where.with_changes(pool.servers, **changes)
    assert [(one.text, one.weight) for one in changed] == expected


BAD_CHANGES = [
    ({"remove": [C]}, f"has no server {C}, but {A}, {B}"),
    ({"weights": {C: 2}}, f"has no server {C}, but {A}, {B}"),
    ({"add": [Server(A)]}, f"has the server {A} already"),
    ({"add": [Server(C), Server(C)]}, f"has the server {C} already"),
    ({"remove": [A, B]}, "no server left"),
    ({"remove": [A, B], "add": [Server(C, backup=True)]}, "no server left"),
    ({"weights": {A: 10_000}}, "10,001 in all"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_CHANGES)
def test_change_that_cannot_be_made_is_refused(pool, changes, reason):
    changes = {"add": [], "remove": [], "weights": {}} | changes
    with pytest.raises(ValueError, match=reason):
        where.with_changes(pool.servers, **changes)


def run(*arguments, stdin=b"", **environment):
    """Run `whoami-router where` as an administrator does."""
    finished = subprocess.run(
        [sys.executable, "-m", "whoami_router", "where", *arguments],
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    finished.stdout, finished.stderr = finished.stdout.decode(), finished.stderr.decode()
    assert "Traceback" not in finished.stderr
    return finished


def answer(*arguments, **options):
    finished = run(*arguments, "--json", **options)
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout)


def test_command_says_the_server_in_each_pool_and_why():
    finished = run("@alice:example.org", "--nginx-conf", NGINX)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == (
        f"""\
@alice:example.org: identifier alice, hash 278ebc47

  pool                  server          point     if that is away  requests
  synapse_sync          {A}  28aabbbc  {B}   sync
  synapse_initial_sync  127.0.0.1:8086  2844e060  127.0.0.1:8085   initial_sync
  synapse_account_data  127.0.0.1:8109  -         -                account_data_read
  synapse_push_rules    127.0.0.1:8111  -         -                push_rules_read

A server is picked by the first point on its pool's ring from the hash on.
"""
    )


def test_command_says_the_same_to_programs():
    said = answer("@alice:example.org", "zoë", WHOAMI_ROUTER_NGINX_CONF=NGINX)
    assert said["configuration"] == NGINX
    assert said["notes"] == []
    alice, zoe = said["users"]
    assert (alice["user"], alice["identifier"]) == ("@alice:example.org", "alice")
    assert (zoe["user"], zoe["identifier"]) == ("zoë", "zo%C3%AB")
    assert alice["pools"][0] == {
        "pool": "synapse_sync",
        "groups": ["sync"],
        "locations": [],
        "servers": 2,
        "key": "alice",
        "hash": 0x278EBC47,
        "server": A,
        "point": 0x28AABBBC,
        "down": [],
        "then": B,
        "depends_on": None,
    }


OWN = """
events { } http {
    map $user_identifier $key { bob $uri; carol ""; default "u:$user_identifier"; }
    upstream pool { hash $key consistent; server 127.0.0.1:1 down; server 127.0.0.1:2; }
    server { location /sync {
        auth_request_set $user_identifier $upstream_http_x_user_identifier;
        proxy_pass http://pool;
    } }
}
"""

REMARKS = [
    ("alice", "127.0.0.1:2", "pool: the key is u:alice, its hash "),
    ("bob", "-", "pool: the key depends on $uri, too."),
    ("carol", "-", "nginx takes what is left in turn."),
    ("eve", "127.0.0.1:2", "pool: 127.0.0.1:1 is down and passed by."),
]


@pytest.mark.parametrize(("user", "server", "remark"), REMARKS)
def test_what_is_out_of_the_ordinary_is_remarked(tmp_path, user, server, remark):
    (tmp_path / "nginx.conf").write_text(OWN)
    finished = run(user, "--nginx-conf", str(tmp_path / "nginx.conf"))
    assert finished.returncode == 0
    [row] = [line.split() for line in finished.stdout.splitlines() if line.startswith("  pool ")][
        1:
    ]
    assert row[1] == server
    assert "location /sync" in finished.stdout
    assert remark in finished.stdout


def test_terminal_is_not_told_what_to_do():
    finished = run("a\x1b[2Jb", "--nginx-conf", NGINX)
    assert r"a\x1b[2Jb: identifier a%1B%5B2Jb" in finished.stdout


LIST = (
    b"@alice:example.org\n\n# a comment\n  bob\t\n@alice:example.org\r\na:b\n\xff\xfe\nc:d\n@eve:x"
)


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_distribution_counts_users_and_loses_no_line(tmp_path, source):
    (tmp_path / "users").write_bytes(LIST)
    name, stdin = ("-", LIST) if source == "stdin" else (str(tmp_path / "users"), b"")
    said = answer(
        *("--distribution", name, "--nginx-conf", NGINX, "--pool", "synapse_sync"), stdin=stdin
    )
    assert (said["users"], said["repeated"]) == (3, 1)
    [pool] = said["pools"]
    assert sum(one["users"] for one in pool["servers"]) == 3
    no_users, no_text = said["notes"]
    assert no_users.startswith("Left out: 2 lines (6, 8): is no user: needs @localpart:domain")
    assert no_text == "Left out: 1 line (7): is not UTF-8."


def test_many_lines_that_cannot_be_read_are_counted_and_the_first_named():
    said = answer("--distribution", "-", "--nginx-conf", NGINX, stdin=b"alice\n" + b"a:b\n" * 2000)
    [note] = said["notes"]
    assert note.startswith("Left out: 2,000 lines (2, 3, 4, 5, 6 and 1,995 more): is no user")


def users(number):
    return "".join(f"@user{n}:example.org\n" for n in range(number)).encode()


def test_distribution_says_who_would_move():
    finished = run(
        *("--distribution", "-", "--nginx-conf", NGINX, "--pool", "synapse_sync"),
        *("--add", f"{C} weight=2", "--remove", B, "--weight", f"{A}=2"),
        stdin=users(1000),
    )
    assert finished.returncode == 0
    text = " ".join(finished.stdout.split())
    assert "synapse_sync: 1,000 users" in text
    assert "of 1,000 users would move" in text
    assert f"from to users {B}" in text or f"from to users {A}" in text
    assert "by weight" in text
    assert text.count("50.0%") >= 4


def test_change_is_said_to_programs_as_it_is():
    said = answer(*("--distribution", "-", "--nginx-conf", NGINX, "--remove", A), stdin=users(1000))
    [pool] = said["pools"]
    assert pool["pool"] == "synapse_sync"  # the only one that has this server
    [a, b] = [one["users"] for one in pool["servers"]]
    assert a + b == 1000
    assert pool["change"]["moved"] == a
    assert pool["change"]["moves"] == [{"from": A, "to": B, "users": a}]
    assert [one["users"] for one in pool["change"]["servers"]] == [1000]


MISTAKES = [
    ([], "Needs --nginx-conf FILE", 2),
    (["alice"], "Needs --nginx-conf FILE", 2),
    (["--nginx-conf", NGINX], "Needs a USER", 2),
    (["@alice", "--nginx-conf", NGINX], "'@alice' is no user: needs @localpart:domain", 2),
    (["alice", "--nginx-conf", "/nowhere"], "cannot read /nowhere: No such file", 1),
    (["alice", "--nginx-conf", "/"], "cannot read /: Is a directory", 1),
    (["alice", "--nginx-conf", __file__], "test_where.py:", 1),
    (["alice", "--nginx-conf", NGINX, "--pool", "x"], "has no upstream x", 1),
    (["alice", "--nginx-conf", NGINX, "--pool", "synapse_main"], "has no hash line", 1),
    (["alice", "--nginx-conf", NGINX, "--add", C], "need --distribution", 2),
    (["alice", "--nginx-conf", NGINX, "--distribution", "-"], "Either USER or a list", 2),
    (["alice", "--nginx-conf", NGINX, "--tokens", "whoami"], "Either USER or a list", 2),
    (["--distribution", "/nowhere", "--nginx-conf", NGINX], "'/nowhere'", 2),
    (["--distribution", "-", "--nginx-conf", NGINX], "There is no user to look for", 1),
    (["--distribution", "-", "--nginx-conf", NGINX, "--add", C], "Name it by --pool", 2),
    (["--distribution", "-", "--nginx-conf", NGINX, "--remove", "x"], "No pool has x; the", 2),
    (["--distribution", "-", "--nginx-conf", NGINX, "--add", "a b"], "no parameter b", 2),
    *(
        (["--distribution", "-", "--nginx-conf", NGINX, "--add", text], "none of ; { }", 2)
        for text in ("foo;bar", "foo{", "foo}", '"foo"', "'foo'", "foo weight=2;", "foo route=;")
    ),
    (["--distribution", "-", "--nginx-conf", NGINX, "--weight", "a"], "needs SERVER=N", 2),
    (["--distribution", "-", "--nginx-conf", NGINX, "--weight", "a=0"], "weight of 1 or more", 2),
    (
        ["--distribution", "-", "--nginx-conf", NGINX, "--pool", "synapse_sync", "--add", A],
        "synapse_sync has the server",
        2,
    ),
]


@pytest.mark.parametrize(("arguments", "reason", "status"), MISTAKES)
def test_mistake_is_answered_with_one_line(arguments, reason, status):
    finished = run(*arguments)
    assert finished.returncode == status
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert reason in finished.stderr


TOKENS = {"secret-one": "@alice:example.org", "secret-two": "@user1:example.org"}


@pytest.fixture(scope="module")
def synapse():
    fake = FakeSynapse(owners=TOKENS | {"secret-three": "no user"}, breaking={"secret-four"})
    with served(fake) as fake.address:
        yield fake


SECRETS = (
    b"secret-one\n# secret-comment\nsecret-two\nsecret-three\nsecret-four\nsecret-five\nsec ret\n"
)


@pytest.mark.parametrize("how", [[], ["--distribution", "-"], ["--json"]])
def test_owners_of_tokens_are_found_and_no_token_is_printed(synapse, how):
    finished = run(
        *("--tokens", "whoami", "--nginx-conf", NGINX, "--pool", "synapse_sync", *how),
        *("--synapse-url", f"http://{synapse.address}"),
        stdin=SECRETS,
    )
    assert finished.returncode == 0, finished.stderr
    said = finished.stdout + finished.stderr
    assert "sec" not in said.replace("http://", "")
    if "--distribution" in how:
        assert "synapse_sync: 2 users" in said
    else:
        assert "@alice:example.org" in said
        assert "@user1:example.org" in said
    for reason in ("(4): is of an", "(5): is not answered", "(6): is rejected", "(7): is no acc"):
        assert f"Left out: 1 line {reason}" in said


def test_where_nobody_answers_for_tokens_that_is_said_in_one_line(tmp_path):
    (tmp_path / "tokens").write_bytes(b"secret-one\n" * 50)
    finished = run(
        *("--tokens", "whoami", "--distribution", str(tmp_path / "tokens"), "--nginx-conf", NGINX),
        *("--synapse-url", f"unix:{tmp_path}/none.sock"),
    )
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "50 lines" in finished.stderr
    assert "No such file or directory" in finished.stderr
    assert "secret" not in finished.stderr


def test_synapse_is_asked_about_few_tokens_at_a_time():
    tokens = {f"token{number}": f"@user{number}:example.org" for number in range(200)}
    fake = FakeSynapse(owners=tokens, held=True)
    with served(fake) as address, ThreadPoolExecutor() as threads:
        running = threads.submit(
            answer,
            *("--tokens", "whoami", "--distribution", "-", "--nginx-conf", NGINX),
            *("--synapse-url", f"http://{address}", "--whoami-timeout", "30"),
            stdin="\n".join(tokens).encode(),
        )
        try:
            wait_until(lambda: fake.most_in_flight >= 8, "questions to Synapse")
        finally:
            fake.held = False
        assert running.result()["users"] == 200
    assert fake.most_in_flight == 8


def test_distribution_goes_by_what_is_hashed(tmp_path):
    (tmp_path / "nginx.conf").write_text(OWN.replace("127.0.0.1:1 down", "127.0.0.1:1"))
    conf = str(tmp_path / "nginx.conf")
    names = [f"user{number}" for number in range(200)]
    each = [user["pools"][0]["server"] for user in answer(*names, "--nginx-conf", conf)["users"]]
    stdin = "\n".join([*names, "bob", "carol", "bob"]).encode()
    said = answer("--distribution", "-", "--nginx-conf", conf, stdin=stdin)
    [pool] = said["pools"]
    assert {one["server"]: one["users"] for one in pool["servers"]} == Counter(each)
    assert pool["elsewhere"] == 2
    shown = run("--distribution", "-", "--nginx-conf", conf, stdin=stdin).stdout
    assert "pool: 202 users" in shown
    assert "not by user" in shown
    assert "1 line named a user again, who counts once." in shown


def test_native_token_among_users_is_left_out_and_not_printed():
    finished = run("--distribution", "-", "--nginx-conf", NGINX, stdin=NATIVE + b"\nalice")
    assert finished.returncode == 0
    assert "Left out: 1 line (1): is an access token" in finished.stdout
    given = run(NATIVE.decode(), "--nginx-conf", NGINX)
    assert given.returncode == 2
    assert "is an access token" in given.stderr
    for said in (finished, given):
        assert NATIVE.decode() not in said.stdout + said.stderr
