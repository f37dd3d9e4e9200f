"""Tokens that no login issued, and what stands in those that one did."""

import secrets
import subprocess

import pytest

from tests.deployment.test_whoami_at_synapse import resolve
from tests.stack.matrix import Device
from tests.stack.router import Router
from tests.stack.synapse import PYTHON, SERVER_NAME

# As Synapse made access tokens until 2021.
MACAROON = """
import sys, pymacaroons
server_name, user_id, nonce = sys.argv[1:]
macaroon = pymacaroons.Macaroon(location=server_name, identifier="key", key="a forgotten key")
for caveat in ("gen = 1", f"user_id = {user_id}", "type = access", f"nonce = {nonce}"):
    macaroon.add_first_party_caveat(caveat)
print(macaroon.serialize(), end="")
"""

INSERT = """
INSERT INTO access_tokens (id, user_id, device_id, token)
SELECT min(id) - 1, :'user_id', nullif(:'device_id', ''), :'token' FROM access_tokens;
"""


@pytest.fixture
def stored(deployment):
    """Puts a token into Synapse's database; returns the device that has it."""

    def insert(user, token, device_id=""):
        deployment.postgres.run(INSERT, user_id=user.user_id, device_id=device_id, token=token)
        return Device(user.user_id, device_id, token)

    return insert


@pytest.fixture
def macaroon_of(stored):
    """Returns a device of a user with a token as old as that; devices are younger."""

    def make(user, device_id=""):
        made = subprocess.run(
            [PYTHON, "-c", MACAROON, SERVER_NAME, user.user_id, secrets.token_hex(8)],
            check=True,
            capture_output=True,
            text=True,
            cwd="/",
        )
        return stored(user, made.stdout, device_id)

    return make


def test_macaroon_token_reaches_its_users_worker(routed, new_user, macaroon_of):
    for _ in range(5):
        user = new_user()
        usual = routed(user).worker
        for device in (macaroon_of(user), macaroon_of(user, user.device_id)):
            assert device.token.startswith("MDA")
            for each in (device, device.with_token_in_query()):
                route = routed(each)
                assert (route.identifier, route.worker) == (user.localpart, usual)


def test_administrator_logged_in_as_a_user_reaches_the_users_worker(matrix, routed, new_user):
    admin = new_user("admin", admin=True)
    for _ in range(5):
        user = new_user()
        usual = routed(user).worker
        device = matrix.log_in_as(user.user_id, admin=admin)
        for each in (device, device.with_token_in_query()):
            route = routed(each)
            assert (route.identifier, route.worker) == (user.localpart, usual)


@pytest.fixture
def asking(deployment, tmp_path):
    """A router that asks Synapse about every token it sees for the first time."""
    directory = tmp_path / "asking"
    directory.mkdir()
    with Router(directory, deployment.main.addresses[1]) as running:
        yield running


@pytest.fixture
def decoding(tmp_path):
    """A router that reads native tokens, and has nobody to ask about others."""
    directory = tmp_path / "decoding"
    directory.mkdir()
    with Router(directory, "http://127.0.0.1:1", "--native-tokens", "decode") as running:
        yield running


def test_router_that_decodes_agrees_with_synapse_on_every_native_token(
    asking, decoding, matrix, new_user
):
    admin = new_user("admin", admin=True)
    for name in ("alice", "a.b_c=d/e+f-g", "a__b", "=", "/", "+", "-", ".", "0"):
        user = new_user(name)
        refreshable = matrix.log_in(user.localpart, refreshable=True)
        devices = [
            user,
            matrix.log_in(user.localpart),
            refreshable,
            matrix.refresh(refreshable),
            matrix.log_in_as(user.user_id, admin=admin),
        ]
        for device in devices:
            identifier, source = resolve(asking, device.token)
            assert source == "whoami"
            assert resolve(decoding, device.token) == (identifier, "token")


def test_router_that_decodes_asks_synapse_about_every_other_token(
    deployment, matrix, new_user, macaroon_of, tmp_path
):
    user = new_user()
    macaroon, guest = macaroon_of(user), matrix.register_guest()
    main = deployment.main.addresses[1]
    with Router(tmp_path, main, "--native-tokens", "decode") as router:
        assert resolve(router, user.token) == (user.localpart, "token")
        assert resolve(router, macaroon.token) == (user.localpart, "whoami")
        assert resolve(router, guest.token) == (guest.localpart, "whoami")
        assert resolve(router, "mct_unknown") == (None, "rejected")


def test_router_that_decodes_asks_synapse_about_a_native_token_with_a_wrong_checksum(
    deployment, new_user, stored, tmp_path
):
    alice, bob = new_user("alice"), new_user("bob")
    # It names bob, and Synapse knows it as one of alice's.
    body = bob.token.rpartition("_")[0]
    token = stored(alice, f"{body}_000000").token
    main = deployment.main.addresses[1]
    with Router(tmp_path, main, "--native-tokens", "decode") as router:
        assert resolve(router, bob.token) == (bob.localpart, "token")
        assert resolve(router, token) == (alice.localpart, "whoami")
        assert resolve(router, f"{body}_111111") == (None, "rejected")
