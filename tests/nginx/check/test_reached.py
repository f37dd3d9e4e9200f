"""What is found at the addresses at which nginx looks for the router."""

import grp
import os
import socket
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.fake_synapse import served
from tests.nginx.check.conftest import only
from tests.nginx.check.edits import LISTEN, UPSTREAMS
from tests.nginx.check.own import UNTOLD
from tests.nginx.conftest import USERS, FakeRouter
from tests.nginx.test_traps import SYNC
from tests.stack.nginx import DEBUG_HEADERS
from tests.stack.router import Router
from whoami_router.check.findings import NOTE, WRONG
from whoami_router.check.nginx.reached import User, closed_to
from whoami_router.settings import Inherited, parse_listen

AWAY = [
    ("127.0.0.1:9", WRONG, "nobody listens there"),
    ("unix:/run/none/sock", WRONG, "no such socket"),
    ("unix:/bin/sh", WRONG, "is a file, but no socket"),
    ("unix:/of-a-container/sock", NOTE, UNTOLD),
    ("nobody.invalid:9009", NOTE, UNTOLD),
]


@pytest.mark.parametrize(("address", "status", "words"), AWAY)
def test_address_where_no_router_answers_is_found(found, address, status, words):
    finding = only(found((UPSTREAMS, LISTEN, address), listen=Inherited(3)))
    assert finding.status == status
    assert words in finding.what
    assert finding.remedy


def test_remedy_for_an_address_where_nobody_listens_is_that_of_the_router(found, asked):
    finding = only(found((UPSTREAMS, LISTEN, "127.0.0.1:9")))
    assert f"server {asked};" in finding.remedy


def test_something_else_in_the_place_of_the_router_is_found(found):
    with served(FakeRouter()) as other:
        finding = only(found((UPSTREAMS, LISTEN, other), listen=parse_listen(other)))
    assert "which is no whoami-router: it answered 204" in finding.what


def test_router_that_hangs_is_found(found, hung_address):
    finding = only(found((UPSTREAMS, LISTEN, hung_address), listen=Inherited(3)))
    assert (finding.status, "did not answer within" in finding.what) == (WRONG, True)


@pytest.fixture
def socket_of_router(tmp_path_factory, pools):
    """Return the path of a socket, in a directory of its own, at which a router listens."""
    with TemporaryDirectory(prefix="wr-site-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "run").mkdir()
        path = directory / "run/sock"
        log = tmp_path_factory.mktemp("router")
        with Router(log, f"http://{pools['main'].address}", listen=f"unix:{path}"):
            yield path


NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="nginx has no other user")

WORKERS = "worker_processes auto;"

# The owner and mode of the socket and of its directory, the line for nginx's user, and who is let
# in, by the group or by anybody's right.
RIGHTS = [
    ("", None, 0o600, None, 0o755, "sock"),
    ("user www-data;", None, 0o600, None, 0o755, "sock"),
    ("user www-data;", "www-data", 0o640, None, 0o755, "sock"),
    ("user www-data;", None, 0o666, None, 0o700, "run"),
    ("user nobody www-data;", None, 0o660, "www-data", 0o750, "sock"),
    ("user nobody www-data;", "www-data", 0o660, "www-data", 0o750, None),
    ("user www-data;", "www-data", 0o660, "www-data", 0o750, None),
    ("", None, 0o666, None, 0o755, None),
    ("user root;", None, 0o000, None, 0o000, None),
]


@NEEDS_ROOT
@pytest.mark.parametrize(("user", "group", "mode", "above", "mode_above", "closed"), RIGHTS)
def test_socket_that_is_closed_to_nginx_is_found(
    found, make_site, socket_of_router, user, group, mode, above, mode_above, closed
):
    for path, name, bits in (
        (socket_of_router, group, mode),
        (socket_of_router.parent, above, mode_above),
    ):
        os.chown(path, 0, grp.getgrnam(name).gr_gid if name else 0)
        path.chmod(bits)
    line = ("nginx.conf", WORKERS, f"{user}\n{WORKERS}")
    address = f"unix:{socket_of_router}"
    findings = found(line, (UPSTREAMS, LISTEN, address), listen=parse_listen(address))
    site = make_site(line, DEBUG_HEADERS, router_address=address)
    named = site.get(SYNC, f"token-{USERS[0]}-0").headers.get("x-user-identifier")
    assert (named == USERS[0]) == (closed is None)
    if closed is None:
        assert findings == []
    else:
        finding = only(findings)
        assert f"/{closed} is closed" in finding.what
        assert finding.remedy


@pytest.fixture
def listening():
    """Return the path of a socket in a directory that is open to all."""
    with TemporaryDirectory(prefix="wr-site-") as name:
        Path(name).chmod(0o755)
        path = Path(name, "sock")
        with socket.create_server(str(path), family=socket.AF_UNIX):
            path.chmod(0o660)
            yield path


SOMEBODY = 12345


def user_of(path, *, owns, groups):
    owner = path.stat().st_uid
    return User("nginx", owner if owns else SOMEBODY, frozenset(groups))


def test_owner_has_the_rights_of_the_owner_and_of_nobody_else(listening):
    mine = user_of(listening, owns=True, groups=())
    assert closed_to(listening, mine) is None
    listening.chmod(0o066)
    mine = user_of(listening, owns=True, groups=[listening.stat().st_gid])
    assert closed_to(listening, mine) == listening


def test_rights_beside_the_mode_are_not_guessed(listening):
    """An access control list may let in whom the mode does not name."""
    other = user_of(listening, owns=False, groups=())
    assert closed_to(listening, other) == listening
    everybody = 2**32 - 1
    # Owner, this user, group, mask, others: tag, rights, user.
    entries = [(1, 6, everybody), (2, 6, SOMEBODY), (4, 0, everybody), (16, 6, everybody)]
    entries.append((32, 0, everybody))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(listening, "system.posix_acl_access", acl)
    except OSError as exc:
        pytest.skip(f"this file system has no such lists: {exc}")
    assert closed_to(listening, other) is None
