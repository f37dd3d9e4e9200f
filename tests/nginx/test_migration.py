"""Who moves to another worker when whoami-router replaces what was there before."""

import base64
import re
import subprocess
from pathlib import Path

import pytest

from tests.nginx.own import own_nginx
from tests.stack.nginx import SHIPPED

SYNC = "/_matrix/client/v3/sync?since=s1"

# As many as are needed for each worker to have some.
ORDINARY = [f"{name}{number}" for name in ("alice", "bob_", "c.a-rol") for number in range(20)]
# Also in localparts of today, but not in a header as they are.
ENCODED = [f"a{sign}{number}" for sign in "=/+" for number in range(10)]


@pytest.fixture(scope="module")
def tokens(pools):
    """Return a token of each user, in the form that Synapse gives it."""
    made = {}
    for user in (*ORDINARY, *ENCODED):
        localpart = base64.b64encode(user.encode()).decode().rstrip("=")
        made[user] = f"syt_{localpart}_random_{len(made)}"
        pools["main"].owners[made[user]] = f"@{user}:example.org"
    yield made
    for token in made.values():
        del pools["main"].owners[token]


@pytest.fixture
def workers(pools):
    """Return the lines of two sync workers."""
    return "".join(f"server {pools[name].address};" for name in ("sync-1", "sync-2"))


def reached(client, tokens):
    """Return the worker of each user."""
    return {
        user: client.get(SYNC, headers={"authorization": f"Bearer {token}"}).json()["server"]
        for user, token in tokens.items()
    }


def before(workers, key, *, asks="", answers=""):
    """Return a configuration that routes by its own means: what it was before."""
    return f"""
        upstream sync_workers {{ hash {key} consistent; {workers} }}
        server {{
            listen 8080;
            location ~ ^/_matrix/client/(r0|v3)/sync$ {{
                {asks}
                proxy_pass http://sync_workers;
            }}
            {answers}
        }}"""


def with_whoami_router(router, workers):
    """Return the same with whoami-router in place of that."""
    return f"""
        upstream whoami_router {{ server {router.address}; keepalive 32; }}
        upstream sync_workers {{ hash $sync_routing_key consistent; {workers} }}
        server {{
            listen 8080;
            include snippets/whoami_router.conf;
            location ~ ^/_matrix/client/(r0|v3)/sync$ {{
                include snippets/route_by_user.conf;
                proxy_pass http://sync_workers;
            }}
        }}"""


OURS = {
    file: (SHIPPED / file).read_text()
    for file in ("conf.d/maps.conf", "snippets/whoami_router.conf", "snippets/route_by_user.conf")
}
BUILT = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True).stderr
MODULES = re.search(r"--modules-path=(\S+)", BUILT)[1]
NJS = {
    "main": f"load_module {MODULES}/ngx_http_js_module.so;",
    "files": {
        "njs.js": (Path(__file__).parent / "njs_router.js").read_text(),
        "conf.d/njs.conf": "js_import njs from njs.js;",
    },
}


@pytest.fixture
def now(router, workers, tokens):
    with own_nginx(with_whoami_router(router, workers), files=OURS) as (client, _):
        return reached(client, tokens)


def test_nobody_moves_who_comes_from_a_router_in_njs(pools, workers, tokens, now):
    asks = """
        auth_request /_route;
        auth_request_set $user $sent_http_x_user_identifier;"""
    answers = f"""
        set $synapse {pools["main"].address};
        location = /_route {{ internal; js_content njs.route; }}"""
    http = before(workers, "$user", asks=asks, answers=answers)
    with own_nginx(http, **NJS) as (client, _):
        then = reached(client, tokens)
    assert set(then.values()) == {"sync-1", "sync-2"}
    assert {user for user in ORDINARY if then[user] != now[user]} == set()
    assert any(then[user] != now[user] for user in ENCODED)


def test_everybody_is_shuffled_once_who_comes_from_a_map_of_tokens(workers, tokens, now):
    token_map = """
        map $http_authorization $localpart {
            "~^Bearer syt_(?<encoded>.*?)_" $encoded;
        }"""
    with own_nginx(token_map + before(workers, "$localpart"), files={}) as (client, _):
        then = reached(client, tokens)
    moved = {user for user in ORDINARY if then[user] != now[user]}
    assert len(ORDINARY) * 0.2 < len(moved) < len(ORDINARY) * 0.8
