"""The command as a process: what an administrator types, and what comes back."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import Process, accepts, wait_until
from tests.stack.router import Router
from tests.test_tokens import NATIVE
from whoami_router import __version__
from whoami_router.app import create_app
from whoami_router.serve import uvicorn_config
from whoami_router.settings import Settings

UPSTREAMS = Path(__file__).parents[1] / "nginx/conf.d/upstreams.conf"

OPTIONS = [
    "synapse-url",
    "listen",
    "admin-listen",
    "cache-size",
    "cache-ttl",
    "stale-ttl",
    "rejected-size",
    "rejected-ttl",
    "whoami-timeout",
    "max-lookups",
    "edge-ttl",
    "native-tokens",
    "log-level",
    "log-format",
]
WITHOUT_DEFAULT = {"admin-listen"}


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "whoami_router", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def one_line(finished):
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    return finished.stderr


@pytest.fixture
def synapse():
    return FakeSynapse(owners={"a": "@alice:example.org"})


@pytest.fixture
def synapse_url(synapse):
    with served(synapse) as address:
        yield f"http://{address}"


def resolve(router, **headers):
    transport = None
    if router.address.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=router.address.removeprefix("unix:"))
    with httpx.Client(transport=transport) as client:
        host = "router" if transport else router.address
        return client.get(f"http://{host}/resolve", headers=headers)


def test_installed_command_is_the_module():
    command = Path(sys.executable).with_name("whoami-router")
    finished = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert __version__ in finished.stdout


def test_help_shows_each_option_with_its_environment_variable_and_default():
    text = " ".join(run("serve", "--help").stdout.split())
    for option in OPTIONS:
        assert f"--{option}" in text
        assert f"env var: WHOAMI_ROUTER_{option.replace('-', '_').upper()}" in text
    assert text.count("default: ") == len({*OPTIONS} - WITHOUT_DEFAULT)


def test_command_without_arguments_shows_its_help():
    finished = run()
    assert "serve" in finished.stderr
    assert finished.returncode == 2


BAD_VALUES = [
    ("synapse-url", "example.org", "http://host:port"),
    ("listen", "9009", "host:port"),
    ("cache-size", "0", "1 or more"),
    ("cache-size", "many", "1 or more"),
    ("cache-size", "9" * 5000, "1 or more"),
    ("cache-ttl", "1h", "number of seconds"),
    ("cache-ttl", "0", "above 0"),
    ("cache-ttl", "nan", "number of seconds"),
    ("whoami-timeout", "-1", "number of seconds"),
    ("whoami-timeout", "inf", "number of seconds"),
    ("stale-ttl", "-1", "0 or more"),
    ("stale-ttl", "inf", "0 or more"),
    ("rejected-size", "0", "1 or more"),
    ("rejected-ttl", "never", "0 or more"),
    ("max-lookups", "0", "1 or more"),
    ("edge-ttl", "1.5", "whole number of seconds"),
    ("edge-ttl", "-1", "0 or more"),
    ("edge-ttl", "9" * 5000, "0 or more"),
    ("native-tokens", "guess", "decode"),
    ("log-level", "loud", "debug"),
]


@pytest.mark.parametrize(("option", "value", "remedy"), BAD_VALUES)
def test_bad_value_is_one_line_with_option_value_and_remedy(option, value, remedy):
    finished = run("serve", f"--{option}", value)
    line = one_line(finished)
    assert f"--{option}" in line
    assert value in line
    assert remedy in line
    assert finished.returncode == 2


@pytest.mark.parametrize(("option", "value", "remedy"), BAD_VALUES)
def test_bad_environment_variable_is_one_line_with_its_name(option, value, remedy):
    variable = f"WHOAMI_ROUTER_{option.replace('-', '_').upper()}"
    finished = run("serve", **{variable: value})
    line = one_line(finished)
    assert variable in line
    assert value in line
    assert remedy in line
    assert finished.returncode == 2


def test_unknown_option_is_one_line():
    finished = run("serve", "--cache-seize", "1")
    assert "--cache-size" in one_line(finished)
    assert finished.returncode == 2


def test_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        finished = run("serve", "--listen", address)
    assert address in one_line(finished)
    assert finished.returncode == 1


def test_path_that_cannot_be_written_is_one_line(tmp_path):
    finished = run("serve", "--listen", f"unix:{tmp_path}/missing/sock")
    assert f"{tmp_path}/missing/sock" in one_line(finished)
    assert finished.returncode == 1


def test_start_is_one_line_that_says_what_runs(tmp_path):
    with Router(tmp_path, "http://127.0.0.1:1", "--cache-size", "123") as router:
        wait_until(router.log_text, "the first line")
        [line] = router.log_text().splitlines()
    for word in (__version__, router.address, "http://127.0.0.1:1", "123"):
        assert word in line


def test_environment_variables_set_every_option(tmp_path, synapse_url):
    environment = {
        "WHOAMI_ROUTER_SYNAPSE_URL": f"{synapse_url} http://127.0.0.1:1",
        "WHOAMI_ROUTER_LISTEN": f"unix:{tmp_path}/sock",
        "WHOAMI_ROUTER_CACHE_SIZE": "321",
        "WHOAMI_ROUTER_CACHE_TTL": "60",
        "WHOAMI_ROUTER_STALE_TTL": "0",
        "WHOAMI_ROUTER_REJECTED_SIZE": "10",
        "WHOAMI_ROUTER_REJECTED_TTL": "0",
        "WHOAMI_ROUTER_WHOAMI_TIMEOUT": "0.5",
        "WHOAMI_ROUTER_MAX_LOOKUPS": "1",
        "WHOAMI_ROUTER_EDGE_TTL": "7",
        "WHOAMI_ROUTER_NATIVE_TOKENS": "decode",
        "WHOAMI_ROUTER_LOG_LEVEL": "debug",
    }
    process = Process(
        "whoami-router",
        [sys.executable, "-m", "whoami_router", "serve"],
        tmp_path / "log",
        ready=lambda: accepts(f"unix:{tmp_path}/sock"),
        environment=environment,
    )
    process.address = f"unix:{tmp_path}/sock"
    with process as router:
        for _ in range(2):
            answer = resolve(router, authorization="Bearer a").headers
            assert answer["x-user-identifier"] == "alice"
            assert answer["x-accel-expires"] == "7"
        native = resolve(router, authorization=f"Bearer {NATIVE.decode()}").headers
        assert native["x-user-identifier-source"] == "token"
        log = router.log_text()
    for word in (
        synapse_url,
        "http://127.0.0.1:1",
        "sock",
        "321",
        "identifier=alice source=whoami",
        "identifier=alice source=cache",
    ):
        assert word in log


@pytest.mark.parametrize("kind", ["tcp", "unix", "inherited tcp", "inherited unix"])
def test_every_kind_of_listener_answers(tmp_path, synapse_url, kind):
    path = str(tmp_path / "activated")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(path, family=socket.AF_UNIX) as unix,
    ):
        listener = {
            "tcp": {},
            "unix": {"listen": f"unix:{tmp_path}/sock"},
            "inherited tcp": {"inherited": tcp},
            "inherited unix": {"inherited": unix},
        }
        with Router(tmp_path, synapse_url, **listener[kind]) as router:
            response = resolve(router, authorization="Bearer a")
            assert response.status_code == 204
            assert response.headers["x-user-identifier"] == "alice"


def test_stale_socket_of_a_killed_router_is_replaced(tmp_path, synapse_url):
    with Router(tmp_path, synapse_url, listen=f"unix:{tmp_path}/sock") as router:
        router.kill()
        assert (tmp_path / "sock").exists()
        router.start()
        assert resolve(router, authorization="Bearer a").headers["x-user-identifier"] == "alice"


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_router_whose_socket_is_gone_ends_with_one_line(tmp_path, synapse_url, how):
    path = tmp_path / "sock"
    with Router(tmp_path, synapse_url, listen=f"unix:{path}") as router:
        assert resolve(router, authorization="Bearer a").status_code == 204
        path.unlink()
        if how == "replaced":
            path.touch()
        wait_until(lambda: not router.alive, "the end", seconds=10)
    assert router.returncode == 1
    assert "removed" in router.log_text().splitlines()[1]
    assert len(router.log_text().splitlines()) == 2
    assert path.exists() == (how == "replaced")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_router_that_is_stopped_as_soon_as_it_listens_ends_well(tmp_path, number):
    with Router(tmp_path, "http://127.0.0.1:1", listen=f"unix:{tmp_path}/sock") as router:
        for _ in range(5):
            router.stop(number)
            assert router.returncode == 0
            assert not (tmp_path / "sock").exists()
            router.start()
    assert "Traceback" not in router.log_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_request_in_flight_is_answered_before_the_end(tmp_path, synapse, synapse_url, number):
    synapse.held = True
    answers = []
    with Router(
        tmp_path, synapse_url, "--whoami-timeout", "20", listen=f"unix:{tmp_path}/sock"
    ) as router:
        request = threading.Thread(
            target=lambda: answers.append(resolve(router, authorization="Bearer a"))
        )
        request.start()
        wait_until(lambda: synapse.requests, "the lookup")
        router.send_signal(number)
        wait_until(lambda: not accepts(router.address), "the listener is closed")
        synapse.held = False
        request.join()
        wait_until(lambda: not router.alive, "the end")
    assert answers[0].headers["x-user-identifier"] == "alice"
    assert router.returncode == 0
    assert not (tmp_path / "sock").exists()
    start, end = router.log_text().splitlines()
    assert "listening" in start
    assert f"stopped signal={number.name}" in " ".join(end.split())


def test_idle_connections_outlive_those_of_nginx():
    [seconds] = re.findall(
        r"upstream whoami_router {[^}]*keepalive_timeout (\d+)s;", UPSTREAMS.read_text()
    )
    assert int(seconds) < uvicorn_config(create_app(Settings())).timeout_keep_alive


def test_as_many_connections_may_wait_as_the_system_admits(tmp_path, synapse_url):
    """For all tokens may be new at once; from a stopped process nobody takes them off."""
    most = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    path = f"{tmp_path}/sock"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Router(tmp_path, synapse_url, listen=f"unix:{path}") as router, ExitStack() as clients:
        clients.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resolve(router)  # it serves
        router.send_signal(signal.SIGSTOP)
        for _ in range(most):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(0)
            client.connect(path)  # raises BlockingIOError when there is no room


def test_connection_stays_open_between_requests(tmp_path, synapse_url):
    with Router(tmp_path, synapse_url) as router, httpx.Client() as client:
        streams = set()
        for _ in range(3):
            response = client.get(f"http://{router.address}/health")
            streams.add(response.extensions["network_stream"])
            assert "server" not in response.headers
    assert len(streams) == 1


def test_no_log_level_shows_a_token(tmp_path, synapse, synapse_url):
    secrets = ["very-secret-known", "very-secret-unknown", "very-secret\x01"]
    synapse.owners[secrets[0]] = "@alice:example.org"
    with Router(tmp_path, synapse_url, "--log-level", "debug") as router:
        for secret in secrets:
            with suppress(httpx.RemoteProtocolError):  # a control character is no HTTP
                resolve(router, authorization=f"Bearer {secret}")
            with suppress(httpx.RemoteProtocolError):
                resolve(router, **{"x-original-uri": f"/sync?access_token={secret}"})
            httpx.get(f"http://{router.address}/x", params={"access_token": secret})
        synapse.answer = Response(status_code=500)
        resolve(router, authorization="Bearer very-secret-3")
    log = router.log_text()
    assert "identifier=alice source=whoami" in log
    assert "very-secret" not in log


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"Authorization: Bearer " + b"a" * 65536, id="64 KiB token"),
        pytest.param(b"Authorization: Bearer a\r\nAuthorization: Bearer b", id="repeated"),
        pytest.param(b"Authorization: Bearer \xff\xfe", id="no UTF-8"),
        pytest.param(b"X-Original-URI: //[?access_token=%0d%0a", id="line break in the query"),
    ],
)
def test_absurd_requests_are_answered_over_a_real_socket(tmp_path, synapse_url, headers):
    with Router(tmp_path, synapse_url) as router:
        host, _, port = router.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET /resolve HTTP/1.1\r\nHost: router\r\n" + headers + b"\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 204 ")
        assert len(router.log_text().splitlines()) == 1
