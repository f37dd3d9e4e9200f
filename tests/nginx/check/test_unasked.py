"""What is found about requests that nobody is asked about."""

import pytest

from tests.nginx.check.edits import SERVER, another, changed
from tests.nginx.check.own import OWN
from whoami_router.check.findings import NOTE, WRONG

CHANGES = [
    (another("= /_matrix/client/v3/sync"), "wrong", "go to synapse_sync without", SERVER),
    (another("= /_matrix/client/r0/sync"), "wrong", "goes to synapse_sync without its", SERVER),
    (another("~ simplified_msc3575/sync$"), "wrong", "a sliding sync (POST", SERVER),
]


@changed(CHANGES)
def test_change_is_found_and_nothing_else(finds_only, edits, status, words, file):
    finds_only(edits, status, words, file)


# A second server, and other locations, that pass requests to the workers of OWN.
TWO = "server a; server b;"
SSO = "location = /sso { proxy_pass http://127.0.0.1:4180; }"
ROOMS = "location / { proxy_pass http://rooms; }"
NOT_ASKED = [
    ("server { listen 8449; location / { proxy_pass http://workers; } }", WRONG),
    ("server { location /_matrix/client/r0/sync { proxy_pass http://workers; } }", WRONG),
    ("server { location ~ /sync$ { set $to workers; proxy_pass http://$to; } }", WRONG),
    (
        f"server {{ {SSO} location / {{ auth_request /sso; proxy_pass http://workers; }} }}",
        WRONG,
    ),
    ("server { location /_matrix/client/v3/keys/ { proxy_pass http://workers; } }", NOTE),
    ("server { location ~ ^/_matrix/client/versions$ { proxy_pass http://workers; } }", NOTE),
    ("server { location / { return 301 https://$host$request_uri; } }", None),
    (
        "upstream one { hash $key; server a; } server { location / { proxy_pass http://one; } }",
        None,
    ),
    (
        f"upstream rooms {{ hash $uri; {TWO} }} server {{ {ROOMS} }}",
        None,
    ),
]


@pytest.mark.parametrize(("more", "status"), NOT_ASKED, ids=[more for more, _ in NOT_ASKED])
def test_pool_of_the_users_is_reached_from_nowhere_without_them(found_in, tmp_path, more, status):
    said = found_in(tmp_path, OWN + more, files={})
    assert [one.status for one in said] == ([] if status is None else [status])
    for one in said:
        assert "without its user" in one.what
        assert one.remedy
        assert one.place


@pytest.mark.parametrize(
    ("pool", "status"), [("workers", WRONG), ("others", NOTE), ("127.0.0.1:8008", None)]
)
def test_sliding_sync_without_its_user_is_wrong_in_the_pool_of_syncs(
    found_in, tmp_path, pool, status
):
    others = "upstream others { server a; server b; }"
    own = OWN.replace("http://127.0.0.1:8008", f"http://{pool}")
    findings = found_in(tmp_path, others + own, files={})
    said = [one for one in findings if "without its user" in one.what]
    assert [one.status for one in said] == ([] if status is None else [status])
    assert all("a sliding sync (POST" in one.what for one in said)
