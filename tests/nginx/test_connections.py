"""How nginx is connected to clients and to Synapse: WebSockets, keep-alive, IPv6, UNIX sockets."""

import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.nginx.edge import (
    MEDIA,
    PRIVATE_CLIENTS,
    SERVER,
    SYNC,
    UPSTREAMS,
    VERSIONS,
    requests_of,
)
from tests.nginx.raw_upstream import streamed
from tests.stack.nginx import EDGE_CACHE
from tests.stack.process import accepts, free_port


def upgraded(site, path, protocol="websocket"):
    """Ask for another protocol; return the socket and the head of the answer."""
    host, port = site.nginx.address.split(":")
    client = socket.create_connection((host, int(port)), 10)
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
        "Sec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        part = client.recv(65536)
        assert part
        head += part
    return client, head.decode()


def to_main(pools, upstream):
    return (UPSTREAMS, pools["main"].address, upstream.address)


@pytest.mark.parametrize("protocol", ["websocket", "WebSocket"])
def test_websockets_pass(make_site, pools, protocol):
    with streamed() as upstream:
        site = make_site(to_main(pools, upstream))
        client, head = upgraded(site, "/_matrix/client/unstable/websocket", protocol)
        with client:
            assert head.startswith("HTTP/1.1 101 ")
            for number in range(3):
                client.sendall(b"frame %d" % number)
                assert client.recv(100) == b"FRAME %d" % number
    assert "sec-websocket-key: abc" in upstream.heads[0].lower()


@pytest.mark.parametrize("protocol", ["h2c", "h2c, websocket", "TLS/1.0", "websocketx"])
def test_no_other_protocol_passes(make_site, pools, protocol):
    with streamed() as upstream:
        site = make_site(to_main(pools, upstream))
        client, head = upgraded(site, VERSIONS, protocol)
        client.close()
    assert head.startswith("HTTP/1.1 200 ")
    assert "upgrade" not in upstream.heads[0].lower()


@pytest.mark.parametrize("path", [VERSIONS, SYNC, MEDIA])
def test_connections_to_synapse_are_used_again(make_site, pools, path):
    one = (UPSTREAMS, pools["sync-2"].address, pools["sync-1"].address)
    site = make_site(one, ("nginx.conf", "worker_processes auto;", "worker_processes 1;"))
    for _ in range(10):
        assert site.get(path).status_code == 200
        assert site.client.post(path, content=b"{}", headers={"upgrade": "h2c"}).status_code == 200
    assert len({(r.scope["server"], r.client.port) for r in requests_of(pools)}) <= 2


def test_nginx_listens_to_ipv6_when_told(make_site):
    port = free_port()
    site = make_site((SERVER, "#listen [::]:8080;", f"listen [::]:{port};"), PRIVATE_CLIENTS)
    assert accepts(site.nginx.address)
    response = site.client.get(f"http://[::1]:{port}/_synapse/admin")
    assert response.json()["headers"]["x-forwarded-for"] == "::1"
    assert response.json()["headers"]["host"] == f"[::1]:{port}"


def test_synapse_may_have_an_ipv6_address(make_site, pools):
    with streamed(("::1", 0)) as upstream:
        site = make_site(to_main(pools, upstream))
        assert site.get(VERSIONS).text == "0"
    assert len(upstream.heads) == 1


def test_synapse_may_listen_at_a_unix_socket(make_site, pools):
    with TemporaryDirectory(prefix="wr-unix-") as directory:
        Path(directory).chmod(0o755)
        path = f"{directory}/synapse.sock"
        with streamed(path) as upstream:
            Path(path).chmod(0o777)
            site = make_site(to_main(pools, upstream), EDGE_CACHE)
            for _ in range(3):
                assert site.get(VERSIONS).text == "0"
            response = site.client.post(MEDIA, content=b"x" * 100_000)
            assert response.text == "100000"
    assert len(upstream.heads) == 4
