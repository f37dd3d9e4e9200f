"""What is found in a configuration of one's own, complete or half done."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nginx.check.own import OWN, UNTOLD
from whoami_router.check.findings import WRONG


def test_complete_configuration_of_ones_own_is_right(found_in, tmp_path):
    assert found_in(tmp_path, OWN, files={}) == []


HEADERS = OWN[
    OWN.index("            proxy_set_header Connection") : OWN.index("            proxy_connect")
]

IDENTIFIERS = """\
        proxy_set_header X-User-Identifier "";
        proxy_set_header X-User-Identifier-Source "";
"""

# Changes to it, and what is found, the first first.
OWN_CHANGES = [
    # One proxy_set_header drops all that would be inherited.
    (
        HEADERS,
        'proxy_set_header Content-Length "";',
        ["Authorization", "in the query", "Synapse rec"],
    ),
    (
        "proxy_next_upstream_timeout 20s;",
        'proxy_set_header A "";',
        ["own headers", "who the client"],
    ),
    ("internal;\n            proxy_pass", "proxy_pass", ["any client"]),
    ("server unix:/run/whoami-router/sock;", "server a:1; server b:1;", ["every token"]),
    ("http://router/resolve", "http://10.0.0.3:9009/resolve", ["no upstream block"]),
    ("hash $key", "hash $user", ["for all, or empty"]),
    ("hash $key consistent", "hash $http_x_user_identifier", ["client's own header"]),
    ("hash $key consistent", "hash $sent_http_x_user_identifier", ["is empty here"]),
    ("hash $key consistent;", "", ["workers is not hashed"]),
    ("$http_authorization$arg_access_token", "$remote_addr", []),
    ("hash $key consistent; server 10.0.0.1:8083;", "", ["one server only"]),
    ("$arg_access_token", "", ["with a token in the query do not keep"]),
    ("$http_authorization$arg", "$arg", ["with a token in the header do not keep"]),
    ("http://workers", "http://10.0.0.1:8083", ["no upstream block"]),
    ("auth_request /who;", "auth_request /whom;", ["no location /whom"]),
    ("auth_request /who;", "", ["nobody is asked for it", "no location asks"]),
    ("$user $upstream_http_x_user_identifier", "$user $upstream_http_x_user", ["nothing is taken"]),
    ("=204 /nobody", "/nobody", ["without `=`"]),
    ("=204 /nobody", "= /nobody", ["cannot be told"]),
    ("=204 /nobody", "= @nobody", ["does not answer 204"]),
    ("proxy_read_timeout 2500ms;", "", ["for 60 s"]),
    ("proxy_read_timeout 2500ms;", "proxy_read_timeout 1500ms;", ["too late"]),
    ("location /_matrix/ {", "location /_matrix/x {", []),
    (
        "proxy_next_upstream_timeout 20s;",
        "if ($key) { set $a b; }",
        ["before whoami-router is asked", "started again"],
    ),
    ("^/_matrix/client/(?<version>r0|v3)/sync$", "^/sync$", ["goes to 127.0.0.1:8008 without"]),
    ("listen 8448;", "set $early $key;", ["before whoami-router is asked"]),
    ("proxy_pass http://router/resolve;", "set $a router; proxy_pass http://$a/resolve;", []),
    ("proxy_pass http://workers;", "set $b http://workers; proxy_pass $b;", []),
    ("proxy_pass http://router/resolve;", "proxy_pass http://$unknown/resolve;", ["cannot be t"]),
    ("proxy_pass http://workers;", "proxy_pass http://$unknown;", ["cannot be t"]),
    ("location /_matrix/ {", "location / {", ["everyone reaches Synapse's administration"]),
    ("location /_matrix/ {", "location / { allow 10.0.0.0/8; deny all;", []),
    (IDENTIFIERS, "proxy_pass_request_headers off;", []),
    ("error_log /dev/null emerg;", "", ["at level error"]),
    ("listen 8448;", "access_log /a.log;", ["shows access tokens in queries"]),
    ("listen 8448;", "access_log /a.log combined if=$loggable;", ["in queries"]),
    ("upstream router", "log_format a $uri; access_log /b a; upstream router", ["by mistake"]),
    ("upstream router", "log_format a $host; access_log /b a; upstream router", []),
]


@pytest.mark.parametrize(
    ("old", "new", "words"), OWN_CHANGES, ids=[new or old for old, new, _ in OWN_CHANGES]
)
def test_what_is_half_done_is_found(found_in, tmp_path, old, new, words):
    assert old in OWN
    findings = found_in(tmp_path, OWN.replace(old, new, 1), files={})
    said = [one.what for one in findings if "looked at" not in one.what and UNTOLD not in one.what]
    for word in words:
        assert any(word in what for what in said), said
    if not words:
        assert said == []
    assert all(one.remedy for one in findings if one.status == WRONG)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, OWN.count("\n") - 1),
            st.sampled_from(
                ["", ";", "$x;", '"";', "a b;", "off;", "= 1;", "set $key $key;", "@a;"]
            ),
        ),
        max_size=4,
    )
)
def test_whatever_a_line_says_there_is_an_answer(found_in, tmp_path, changes):
    lines = OWN.splitlines()
    for number, end in changes:
        if lines[number].strip() and not set("{}") & set(lines[number]):
            lines[number] = f"{lines[number].split()[0]} {end}" if end else ""
    assert isinstance(found_in(tmp_path, "\n".join(lines), files={}), list)
