import json
import re

import pytest

from tests.endpoints.__main__ import HERE
from tests.endpoints.samples import samples


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("^/versions$", ["/versions"]),
        ("^/(r0|v3)/sync$", ["/r0/sync", "/v3/sync"]),
        ("/(cas|sso)/(?P<idp_id>[A-Za-z0-9_.~-]+)$", ["/cas/A", "/sso/A"]),
        ("^/rooms/(?P<room_id>[^/]*)/state$", ["/rooms/x/state"]),
        ("^/rooms/.*/(join|leave)$", ["/rooms/x/join", "/rooms/x/leave"]),
        ("^/user/[^/]+/filter(/|$)", ["/user/x/filter/", "/user/x/filter"]),
        (
            "^/keys(/(?P<room_id>[^/]+))?(/(?P<session_id>[^/]+))?$",
            ["/keys", "/keys/x", "/keys/x/x"],
        ),
        ("^/event/(?P<event_id>[^/]*)/?$", ["/event/x", "/event/x/"]),
        (r"^/auth/(?P<stagetype>[\w\.]*)/web$", ["/auth/x/web"]),
        (r"^/org.matrix\.msc/", ["/org.matrix.msc/"]),
    ],
)
def test_each_way_through_an_expression_is_in_a_path(pattern, paths):
    assert samples(pattern) == paths


@pytest.mark.parametrize(
    "pattern",
    [entry["pattern"] for entry in json.loads((HERE / "synapse.json").read_text())["endpoints"]],
)
def test_expression_matches_its_own_paths(pattern):
    assert samples(pattern)
    assert all(re.fullmatch(pattern, path) for path in samples(pattern))


def test_what_is_not_understood_is_not_passed_over():
    with pytest.raises(NotImplementedError, match="ASSERT"):
        samples("^/(?!v1)")
