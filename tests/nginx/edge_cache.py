"""What the edge cache promises, and the lines of its files that keep each promise."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
from starlette.responses import Response

from tests.stack.nginx import DEBUG_HEADERS, EDGE_CACHE
from tests.stack.process import DidNotHappen, wait_until
from whoami_router.tokens import asserted_user_id, by_name, extract_token, original_uri

SYNC = "/_matrix/client/v3/sync?since=s1"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1"


def known(request):
    """Answer as a router does that knows every token: the user has the token's name.

    A token that begins with ``service`` acts for others. Nobody's is ``rejected``.
    """
    headers = by_name(request.scope["headers"])
    token = extract_token(headers)
    if token is None or token.startswith(b"rejected"):
        return Response(status_code=204, headers={"X-Accel-Expires": "0"})
    uri = original_uri(headers)
    user = (token.startswith(b"service") and asserted_user_id(uri)) or token.decode()
    identifier = user.replace("@", "").partition(":")[0]
    return Response(
        status_code=204, headers={"X-User-Identifier": identifier, "X-Accel-Expires": "60"}
    )


def edge_site(setting, *edits, answer=known):
    """Start an nginx with the edge cache, in front of a fake router that gives this answer."""
    setting.fake_router.answer = answer
    address = setting.fake_router.address
    return setting.site(EDGE_CACHE, DEBUG_HEADERS, *edits, router_address=address)


def identifier(site, path=SYNC, token=None):
    response = site.get(path, token)
    assert response.status_code == 200
    return response.headers.get("x-user-identifier")


def files(site):
    """Return what the edge cache has written."""
    return [path for path in (site.nginx.files.parent / "edge").rglob("*") if path.is_file()]


# Whose answer it is.


def every_token_has_its_own_answer(setting):
    site = edge_site(setting)
    for _ in range(2):
        for name in ("a", "b", "c"):
            assert identifier(site, token=name) == name
            assert identifier(site, f"{SYNC}&access_token={name}-query") == f"{name}-query"
            assert identifier(site, f"{SLIDING}&access_token={name}-x&y=1") == f"{name}-x"


def every_user_of_a_service_has_an_answer(setting):
    site = edge_site(setting)
    for _ in range(2):
        for user in ("bob", "carol"):
            assert identifier(site, f"{SYNC}&user_id=@{user}:h", "service") == user
            query = f"{SYNC}&access_token=service2&user_id=%40{user}%3Ah"
            assert identifier(site, query) == user
        assert identifier(site, token="service") == "service"


def parameters_with_encoded_names_are_found(setting):
    """By the router alone, which is asked each time."""
    site = edge_site(setting)
    for asked in (5, 9):  # about the service itself once
        for name in ("bob", "carol"):
            assert identifier(site, f"{SYNC}&access%5Ftoken={name}") == name
            assert identifier(site, f"{SYNC}&%75ser_id=@{name}:h", "service") == name
        assert identifier(site, token="service") == "service"
        assert len(setting.fake_router.requests) == asked


def nothing_is_remembered_without_a_token(setting):
    """Not even if the router says that it may be."""
    site = edge_site(setting, answer=Response(status_code=204, headers={"X-Accel-Expires": "60"}))
    for path in (SYNC, f"{SYNC}&access_token=", f"{SYNC}&access%5Ftoken=a", f"{SYNC}&access_token"):
        site.get(path)
        site.get(path, authorization="Basic a")
        site.get(path, authorization="bearer a")
    assert len(setting.fake_router.requests) == 12
    assert files(site) == []


# What is remembered.


def known_token_is_asked_about_once(setting):
    site = edge_site(setting, ("nginx.conf", "http {", "http {\n    proxy_buffering off;"))
    for number in range(5):
        assert identifier(site, f"{SYNC}{number}", "a") == "a"
        assert identifier(site, f"{SYNC}{number}&access_token=b") == "b"
        headers = {"authorization": "Bearer a"}
        assert site.client.post(SLIDING, content="{}", headers=headers).status_code == 200
    assert len(setting.fake_router.requests) == 2


def answers_need_no_other_directory(setting):
    """Nothing is written anywhere on the way: a token in clear stays in memory."""
    site = edge_site(setting)
    (site.nginx.files.parent / "temp_proxy").chmod(0)
    try:
        assert identifier(site, token="a") == "a"
    except httpx.RemoteProtocolError:
        raise AssertionError("nginx could not write an answer") from None
    assert len(files(site)) == 1


def concurrent_requests_ask_once(setting):
    longer = ("snippets/edge_cache.conf", "proxy_cache_lock_timeout 10ms;", "")
    site = edge_site(setting, longer)
    setting.fake_router.held = True
    with ThreadPoolExecutor(10) as clients:
        asked = [clients.submit(site.get, SYNC, "a") for _ in range(10)]
        with suppress(DidNotHappen):
            wait_until(lambda: len(setting.fake_router.requests) > 1, "a second one", seconds=1)
        setting.fake_router.held = False
        assert {each.result().headers["x-user-identifier"] for each in asked} == {"a"}
    assert len(setting.fake_router.requests) == 1


def concurrent_requests_do_not_wait_long_for_each_other(setting):
    """Whose answer is not to be remembered would have to wait for all before them."""
    site = edge_site(setting)
    setting.fake_router.held = True
    with ThreadPoolExecutor(10) as clients:
        asked = [clients.submit(site.get, SYNC, "rejected") for _ in range(10)]
        with suppress(DidNotHappen):
            wait_until(lambda: len(setting.fake_router.requests) == 10, "they ask", seconds=2)
        arrived = len(setting.fake_router.requests)
        setting.fake_router.held = False
        assert {each.result().status_code for each in asked} == {200}
    assert arrived == 10


# While the router is away.


def until_it_is_asked_again(setting, site):
    """Sync until the router is asked a second time; return how long each sync took."""
    durations = []

    def asked_again():
        start = time.monotonic()
        with httpx.Client(base_url=site.nginx.url, timeout=30) as client:
            response = client.get(SYNC, headers={"authorization": "Bearer a"})
        durations.append(time.monotonic() - start)
        assert response.headers.get("x-user-identifier") == "a"
        return len(setting.fake_router.requests) > 1

    wait_until(asked_again, "the answer is too old")
    return durations


def for_a_second(request):
    response = known(request)
    response.headers["X-Accel-Expires"] = "1"
    return response


def known_user_keeps_its_identifier_without_router(setting):
    for status in (403, 500, 503):
        site = edge_site(setting, answer=for_a_second)
        setting.fake_router.requests.clear()
        assert identifier(site, token="a") == "a"
        setting.fake_router.answer = Response(status_code=status)
        until_it_is_asked_again(setting, site)
        for _ in range(3):
            assert identifier(site, token="a") == "a", status


def hung_router_holds_no_known_user_up(setting):
    site = edge_site(setting, answer=for_a_second)
    assert identifier(site, token="a") == "a"
    setting.fake_router.held = True
    assert max(until_it_is_asked_again(setting, site)) < 2  # nginx's own limit is three seconds


CACHE = "snippets/edge_cache.conf"
ZONE = "conf.d/edge_cache.conf"

# File, how the lines to delete begin, and what they promise; as in test_traps.py.
TRAPS = [
    (CACHE, "proxy_cache whoami_router;", known_token_is_asked_about_once),
    (CACHE, "proxy_cache_key ", every_token_has_its_own_answer),
    (CACHE, "proxy_no_cache ", nothing_is_remembered_without_a_token),
    (CACHE, "proxy_buffering on;", known_token_is_asked_about_once),
    (CACHE, "proxy_cache_use_stale ", known_user_keeps_its_identifier_without_router),
    (CACHE, "proxy_cache_background_update on;", hung_router_holds_no_known_user_up),
    (CACHE, "proxy_cache_lock on;", concurrent_requests_ask_once),
    (CACHE, "proxy_cache_lock_timeout ", concurrent_requests_do_not_wait_long_for_each_other),
    (ZONE, "                 use_temp_path=off ", answers_need_no_other_directory),
    (ZONE, '    ""      1;', nothing_is_remembered_without_a_token),
    (ZONE, '    "~access_token|user_id|%"', every_token_has_its_own_answer),
    (ZONE, '    "~^[^?]*\\?(?:[^&]*&)*?[^=&%]*%', parameters_with_encoded_names_are_found),
    (ZONE, "    encoded 1;", parameters_with_encoded_names_are_found),
    (ZONE, '    "~^[^?]*\\?(?:[^&]*&)*?user_id', every_user_of_a_service_has_an_answer),
]
