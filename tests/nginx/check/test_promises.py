"""Each trap is found, and what is found breaks a promise under a real nginx."""

import pytest

from tests.nginx.check.edits import (
    CACHE,
    CLIENTS,
    EARLY,
    KEPT_FIRST,
    ROUTER,
    ROUTES,
    SATISFY_ANY,
    SECOND,
    SERVER,
    UPSTREAMS,
    another,
)
from tests.nginx.test_traps import (
    SLIDING,
    SYNC,
    TRAPS,
    Setting,
    deletions,
    each_user_keeps_its_worker,
    no_answer_of_the_router_costs_a_sync,
    posts_and_gets_alternate_without_one_failure,
    router_is_asked_over_one_connection,
)
from tests.stack.nginx import ACCESS_LOG, EDGE_CACHE
from whoami_router.check.findings import WRONG

# What a trap's test sees, and a configuration does not show.
NOT_SHOWN = {
    (UPSTREAMS, "    hash $token_routing_key"): "one router only; see test_asking.py for two",
    (CACHE, "proxy_buffering on;"): "it is nginx's default; see test_edge_cache.py for off",
    (ROUTES, "    pagination "): "one worker only; see test_pools.py for two",
    (ROUTES, "    federation_inbound "): "one worker only; see test_pools.py for two",
    (CLIENTS, '    "~*/(\\.|%2e)'): "what has dots is private by the line below it, too",
    (CLIENTS, '    ""      0;'): "too much is closed, and the administrator sees it",
    ("conf.d/log_format.conf", '    default    "$logged_path?(hidden)"'): "too little is logged",
}


@pytest.mark.parametrize(
    ("file", "start"),
    [trap[:2] for trap in TRAPS],
    ids=[f"{file}: {start.strip()}" for file, start, _ in TRAPS],
)
def test_each_trap_is_found(found, file, start):
    """Add a trap that a configuration does not show to NOT_SHOWN, with the reason."""
    findings = found(ACCESS_LOG, EDGE_CACHE, *deletions(file, start))
    assert bool(findings) == ((file, start) not in NOT_SHOWN)
    assert all(one.remedy for one in findings if one.status == WRONG)


# What is found and is no deleted line, and the promise of test_traps.py that it breaks.
BROKEN = [
    (
        KEPT_FIRST,
        router_is_asked_over_one_connection,
    ),
    ([(ROUTER, "599 = @", "599 @")], no_answer_of_the_router_costs_a_sync),
    (
        [(ROUTER, 'Content-Length "";', "Content-Length $content_length;")],
        posts_and_gets_alternate_without_one_failure,
    ),
    (
        [(UPSTREAMS, SECOND, "    hash $upstream_http_x_user_identifier consistent;  #")],
        each_user_keeps_its_worker(SYNC),
    ),
    (EARLY, each_user_keeps_its_worker(SYNC)),
    ([(SERVER, *SATISFY_ANY)], each_user_keeps_its_worker(SYNC)),
    (another("= /_matrix/client/v3/sync"), each_user_keeps_its_worker(SYNC)),
    (another("~ simplified_msc3575/sync$"), each_user_keeps_its_worker(SLIDING)),
]


@pytest.mark.parametrize(
    ("edits", "promise"), BROKEN, ids=[edits[-1][2].strip() for edits, _ in BROKEN]
)
def test_what_is_wrong_breaks_a_promise_under_a_real_nginx(
    found, make_site, pools, fake_router, dead_address, hung_address, edits, promise
):
    assert any(one.status == WRONG for one in found(*edits))
    setting = Setting(make_site, edits, pools, fake_router, dead_address, hung_address)
    with pytest.raises(AssertionError):
        promise(setting)
