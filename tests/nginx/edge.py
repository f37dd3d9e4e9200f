"""What the edge promises (whom nginx lets in, what it answers itself, what it logs), and the lines
of its files that keep each promise.
"""

import socket
from contextlib import contextmanager
from itertools import chain

import httpx

from tests.stack.nginx import ACCESS_LOG
from tests.stack.process import wait_until

SYNC = "/_matrix/client/v3/sync?since=s1"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1"
MEDIA = "/_matrix/media/v3/upload"
VERSIONS = "/_matrix/client/versions"

CLIENTS = "conf.d/clients.conf"
SERVER = "conf.d/synapse.conf"
ROUTES = "conf.d/routes.conf"
LOGS = "conf.d/log_format.conf"
UPSTREAMS = "conf.d/upstreams.conf"

# As Synapse sends them (set_cors_headers in synapse/http/server.py).
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "X-Requested-With, Content-Type, Authorization, Date",
    "access-control-expose-headers": "Synapse-Trace-Id, Server",
}

# Edits that an administrator may make.
PRIVATE_CLIENTS = (CLIENTS, "127.0.0.0/8 1;", "127.0.0.1 1;\n    192.0.2.9 1;")
STRANGER = "127.0.0.2"  # to whom PRIVATE_CLIENTS leave what is for everyone
TRUSTED_PROXY = (CLIENTS, "#set_real_ip_from 192.0.2.1;", "set_real_ip_from 127.0.0.1;")
JSON_LOG = (ACCESS_LOG[0], ACCESS_LOG[1], "\naccess_log /dev/stdout routing_json;")


def requests_of(pools):
    """Return what all stand-ins were asked."""
    return list(chain.from_iterable(synapse.requests for synapse in pools.values()))


@contextmanager
def client_at(site, address):
    """Yield a client of the site that has another address."""
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=site.nginx.url, transport=transport, timeout=30) as client:
        yield client


def sent_raw(site, request, address=STRANGER):
    """Send the bytes of a request as they are; return all that nginx answers."""
    host, port = site.nginx.address.split(":")
    with socket.create_connection((host, int(port)), 10, source_address=(address, 0)) as client:
        client.sendall(request)
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer


def asked_for(site, target, *headers, address=STRANGER):
    """Send a request for the target as it is; return the status."""
    lines = (f"GET {target} HTTP/1.1", "Host: example.org", "Connection: close", *headers, "", "")
    answer = sent_raw(site, "\r\n".join(lines).encode("latin-1"), address)
    return int(answer.split(b" ", 2)[1])


def logged(site, count=1):
    """Return the lines of the access log, once there are as many."""

    def lines():
        text = site.nginx.log.read_bytes()
        return text.splitlines() if text.endswith(b"\n") else []

    wait_until(lambda: len(lines()) >= count, "the access log")
    return lines()


# Who is let in.


def everyone_reaches_what_is_public(setting):
    site = setting.site(PRIVATE_CLIENTS)
    for path in ("/_matrix/key/v2/server", "/_synapse/client/x", "/.well-known/matrix/x"):
        assert asked_for(site, path) == 200, path


def dots_lead_nobody_to_private_endpoints(setting):
    """To Synapse /_synapse/metrics/../../_matrix/x is still a path below /_synapse/metrics."""
    site = setting.site(PRIVATE_CLIENTS)
    for path in ("/_synapse/metrics/../../_matrix/x", "/_matrix/../_synapse/admin/v1/users"):
        assert asked_for(site, path) == 403, path
    assert asked_for(site, "/_matrix/x") == 200


def strangers_do_not_reach_private_endpoints(setting):
    site = setting.site(PRIVATE_CLIENTS)
    assert asked_for(site, "/_synapse/admin/v1/users") == 403
    assert asked_for(site, "/_synapse/admin/v1/users", address="127.0.0.1") == 200


def unlisted_proxy_brings_nobody_to_private_endpoints(setting):
    site = setting.site()
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
        for value in ("192.0.2.1", "127.0.0.1", "unknown", "for=192.0.2.1"):
            assert asked_for(site, "/_synapse/admin", f"{header}: {value}") == 403
    assert asked_for(site, "/_synapse/admin") == 200


# Where requests go, and in which order.


def with_workers(setting, group, port):
    """Return the edits that give a group of endpoints the two sync workers."""
    one, other = (setting.pools[name].address for name in ("sync-1", "sync-2"))
    row = "    default                    synapse_main;\n"
    server = f"    server 127.0.0.1:{port} max_fails=0;\n"
    return (
        (UPSTREAMS, row, f"{row}    {group} synapse_{group};\n"),
        (UPSTREAMS, server, f"    server {one};\n    server {other};\n"),
    )


def messages_of_a_room_are_read_from_one_worker(setting):
    site = setting.site(*with_workers(setting, "pagination", 8106))
    reached = {}
    for room in range(20):
        for spelling in (f"!{room}:example.org", f"%21{room}%3aexample.org"):
            for _ in range(3):
                server = site.server(f"/_matrix/client/v3/rooms/{spelling}/messages")
                reached.setdefault(room, set()).add(server)
    assert all(len(servers) == 1 for servers in reached.values())
    assert set.union(*reached.values()) == {"sync-1", "sync-2"}


def transactions_of_a_server_keep_their_order(setting):
    site = setting.site(*with_workers(setting, "federation_inbound", 8108))
    reached = {}
    for server in range(2, 22):
        with client_at(site, f"127.0.{server}.1") as client:
            for number in range(4):
                response = client.put(f"/_matrix/federation/v1/send/{number}", content=b"{}")
                reached.setdefault(server, set()).add(response.json()["server"])
    assert all(len(servers) == 1 for servers in reached.values())
    assert set.union(*reached.values()) == {"sync-1", "sync-2"}


# What is logged.


def log_shows_paths_and_no_secrets(setting):
    for log in (ACCESS_LOG, JSON_LOG):
        site = setting.site(log)
        site.get(f"{VERSIONS}?access_token=very-secret")
        site.get(f"{VERSIONS}%3Faccess_token=very-secret")
        text = b"\n".join(logged(site, 2)).decode()
        assert text.count(VERSIONS) == 2
        assert "very-secret" not in text


def dead_sync_workers_are_answered_in_json(setting):
    site = setting.site(initial=[setting.dead_address])
    response = site.get("/_matrix/client/v3/sync")
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/json"


# File, how the lines to delete begin, and what they promise; as in test_traps.py.
TRAPS = [
    (CLIENTS, '    "~^/_matrix/" ', everyone_reaches_what_is_public),
    (CLIENTS, '    "~^/_synapse/client/" ', everyone_reaches_what_is_public),
    (CLIENTS, '    "~^/\\.well-known/" ', everyone_reaches_what_is_public),
    (CLIENTS, '    "~*/(\\.|%2e)', dots_lead_nobody_to_private_endpoints),
    (CLIENTS, "    default  1;", strangers_do_not_reach_private_endpoints),
    (CLIENTS, '    ""      0;', unlisted_proxy_brings_nobody_to_private_endpoints),
    (ROUTES, '    "~^(?<path_as_written>', everyone_reaches_what_is_public),
    (ROUTES, "    pagination ", messages_of_a_room_are_read_from_one_worker),
    (ROUTES, "    federation_inbound ", transactions_of_a_server_keep_their_order),
    (SERVER, "    recursive_error_pages on;", dead_sync_workers_are_answered_in_json),
    (LOGS, '    default    "$logged_path?(hidden)"', log_shows_paths_and_no_secrets),
    (LOGS, '    "~*^(?<path_before_query>', log_shows_paths_and_no_secrets),
]
