"""Changes to the shipped files, each a file, what it says, and what it says instead."""

import pytest

LISTEN = "127.0.0.1:9009"

ROUTER = "snippets/whoami_router.conf"
ROUTE = "snippets/route_by_user.conf"
PROXY = "snippets/proxy.conf"
CACHE = "snippets/edge_cache.conf"
LOG = "snippets/access_log.conf"
ZONE = "conf.d/edge_cache.conf"
MAPS = "conf.d/maps.conf"
ROUTES = "conf.d/routes.conf"
UPSTREAMS = "conf.d/upstreams.conf"
SERVER = "conf.d/synapse.conf"
CLIENTS = "conf.d/clients.conf"

HASH = "    hash $token_routing_key consistent;"
SECOND = "    hash $routing_key consistent;  # (!)"
SATISFY_ANY = (
    "    location @by_user {\n",
    "    location @by_user {\n        satisfy any;\n        allow all;\n",
)
# Beside the location that asks, another one that does not.
ANOTHER = """
    location WHERE {
        include snippets/proxy.conf;
        proxy_pass http://synapse_sync;
    }
    location @by_user {
"""


def another(where):
    return [(SERVER, "    location @by_user {\n", ANOTHER.replace("WHERE", where))]


KEPT_FIRST = [
    (UPSTREAMS, "    keepalive 32;\n    keepalive_timeout 60s;", "    keepalive_timeout 60s;"),
    (UPSTREAMS, f"{HASH}  # (!)", f"    keepalive 32;\n{HASH}  #"),
]
EARLY = [
    (MAPS, "map $user_id", "limit_req_zone $sync_routing_key zone=u:1m rate=99r/s;\nmap $user_id"),
    (SERVER, "    location / {", "    limit_req zone=u burst=99;\n    location / {"),
]


def changed(changes):
    """Run a test for each change, and the one thing that is found.

    Which is: its status, words in what is said, and the file that it is in.
    """
    return pytest.mark.parametrize(
        ("edits", "status", "words", "file"),
        changes,
        ids=[
            f"{edits[-1][0]}: {edits[-1][2].strip() or edits[-1][1].strip()}"
            for edits, *_ in changes
        ],
    )
