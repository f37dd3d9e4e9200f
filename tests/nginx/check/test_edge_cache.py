"""What is found about the edge cache."""

from tests.nginx.check.edits import CACHE, ZONE, changed
from tests.stack.nginx import EDGE_CACHE

CHANGES = [
    ([EDGE_CACHE, (CACHE, "$http_auth", "$cookie_auth")], "wrong", "users share one", CACHE),
    (
        [EDGE_CACHE, (CACHE, '"$edge_cache_query $', '"$arg_access_token $')],
        "wrong",
        "in the query share",
        CACHE,
    ),
    ([EDGE_CACHE, (CACHE, "max=12000", "max=19000")], "wrong", "descriptors", CACHE),
    ([EDGE_CACHE, (CACHE, "lock_timeout 10ms;", "lock_timeout 5s;")], "wrong", "half a", CACHE),
    ([EDGE_CACHE, (CACHE, "proxy_buffering on;", "proxy_buffering off;")], "wrong", "buff", None),
    (
        [
            EDGE_CACHE,
            (CACHE, "proxy_cache w", "proxy_ignore_headers X-Accel-Expires;\nproxy_cache w"),
        ],
        "wrong",
        "fallbacks are repeated",
        CACHE,
    ),
    (
        [EDGE_CACHE, (CACHE, "proxy_cache whoami_router;", "proxy_cache w;")],
        "wrong",
        "zone w",
        None,
    ),
    ([EDGE_CACHE, (ZONE, "/dev/shm/whoami_router", "/proc/x")], "wrong", "disk", ZONE),
    ([EDGE_CACHE, (ZONE, "/dev/shm/whoami_router", "/missing/x")], "note", "in memory", ZONE),
]


@changed(CHANGES)
def test_change_is_found_and_nothing_else(finds_only, edits, status, words, file):
    finds_only(edits, status, words, file)
