"""``whoami-router check`` as a process: what it finds, its status, and what it never prints."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import free_port
from tests.stack.router import Router
from tests.test_tokens import NATIVE

SECRET = "very-secret-token"
HEAVY = ("aiohttp", "httpx", "starlette", "uvicorn", "crossplane", "asyncio", "http.client")


def check(*arguments, stdin=b"", **environment):
    """Run the command; return it when it has ended, with what it printed as text."""
    finished = subprocess.run(
        [sys.executable, "-m", "whoami_router", "check", *map(str, arguments)],
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    finished.stdout = finished.stdout.decode()
    finished.stderr = finished.stderr.decode()
    assert SECRET not in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished


def found(finished, status="wrong"):
    """Return the lines of this status, each with the remedy below it."""
    lines = finished.stdout.splitlines()
    return [
        line + (lines[number + 1] if "remedy: " in "".join(lines[number + 1 : number + 2]) else "")
        for number, line in enumerate(lines)
        if line.startswith(status)
    ]


def one_wrong(finished):
    assert finished.stderr == ""
    assert finished.returncode == 1
    [line] = found(finished)
    assert "remedy: " in line
    return line


@pytest.fixture
def synapse():
    return FakeSynapse(
        owners={
            SECRET: "@alice:example.org",
            NATIVE.decode(): "@alice:example.org",
            "odd": "@\u00e4:h",
            "none": "alice",
        },
        services={"service": ["@bot:example.org"]},
        breaking={"breaking"},
    )


@pytest.fixture
def synapse_url(synapse):
    with served(synapse) as address:
        yield f"http://{address}"


@pytest.fixture
def router(tmp_path, synapse_url):
    with Router(tmp_path, synapse_url) as router:
        yield router


@pytest.fixture
def closed():
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def token_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "token"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


# The whole.


def test_all_that_is_right_is_said_and_the_status_is_0(router, synapse_url, token_file):
    finished = check(
        *("--synapse-url", synapse_url, "--listen", router.address),
        *("--token-file", token_file(f"{SECRET}\n")),
    )
    assert finished.returncode == 0
    assert finished.stderr == ""
    said = [line.split()[:2] for line in finished.stdout.splitlines()]
    assert said == [
        ["ok", "synapse"],
        ["ok", "token"],
        *[["ok", "router"]] * 4,
        ["note", "nginx"],
    ]
    assert "@alice:example.org" in finished.stdout


def test_the_environment_is_that_of_the_service(router, synapse_url, token_file):
    finished = check(
        WHOAMI_ROUTER_SYNAPSE_URL=synapse_url,
        WHOAMI_ROUTER_LISTEN=router.address,
        WHOAMI_ROUTER_TOKEN_FILE=str(token_file(SECRET)),
    )
    assert finished.returncode == 0, finished.stdout
    assert router.address in finished.stdout


def test_what_has_no_input_is_said_to_be_left_out(router, synapse_url):
    finished = check("--synapse-url", synapse_url, "--listen", router.address)
    assert finished.returncode == 0
    assert [line.split()[1] for line in found(finished, "note")] == ["token", "nginx"]


def test_only_the_parts_that_are_named_are_looked_at(router, synapse_url):
    given = ("--synapse-url", synapse_url, "--listen", router.address)
    assert found(check(*given, "--only", "synapse"), "note") == []
    both = check(*given, "--only", "router", "--only", "synapse").stdout
    assert {line.split()[1] for line in both.splitlines()} == {"synapse", "router"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "token"], "--token-file"),
        (["--only", "nginx"], "--nginx-conf"),
        (["--only", "everything"], "--only"),
        (["--listen", "9009"], "--listen"),
    ],
)
def test_mistakes_in_the_command_are_one_line_and_status_2(arguments, named):
    finished = check(*arguments)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert named in finished.stderr


def test_json_is_one_object_for_programs(router, synapse_url, closed):
    good = check("--json", "--synapse-url", synapse_url, "--listen", router.address)
    assert good.returncode == 0
    assert json.loads(good.stdout)["ok"] is True
    bad = check("--json", "--synapse-url", synapse_url, "--listen", closed)
    assert bad.returncode == 1
    answer = json.loads(bad.stdout)
    assert answer["ok"] is False
    [wrong] = [one for one in answer["findings"] if one["status"] == "wrong"]
    assert wrong.keys() == {"part", "status", "what", "remedy", "place"}
    assert wrong["part"] == "router"
    assert wrong["remedy"]


# Synapse.


def synapse_says(*urls, timeout="2"):
    given = [word for url in urls for word in ("--synapse-url", url)]
    return check("--only", "synapse", "--whoami-timeout", timeout, *given)


def test_each_url_is_looked_at_by_itself(synapse_url, closed):
    finished = synapse_says(synapse_url, f"http://{closed}")
    assert closed in one_wrong(finished)
    assert synapse_url in found(finished, "ok")[0]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (HTMLResponse("<html>It works", 200), "another HTTP server"),
        (HTMLResponse("not found", 404), "another HTTP server"),
        (HTMLResponse("who are you", 401), "another HTTP server"),
        (JSONResponse({"errcode": "M_UNRECOGNIZED"}, 404), "generic worker"),
        (JSONResponse({"errcode": "M_FORBIDDEN"}, 403), "M_FORBIDDEN"),
        (JSONResponse({"user_id": "@alice:h"}), "another HTTP server"),
        (JSONResponse(["M_MISSING_TOKEN"], 401), "another HTTP server"),
        (Response("[" * 60_000, 401), "another HTTP server"),
        (RedirectResponse("https://example.org"), "another HTTP server"),
        (Response("", 502), "proxy"),
        (Response("", 429), "limits rates"),
    ],
)
def test_server_that_is_no_synapse_is_said_to_be_none(synapse, synapse_url, answer, word):
    synapse.answer = answer
    assert word in one_wrong(synapse_says(synapse_url))


def test_proxy_before_synapse_is_noted(synapse, synapse_url):
    synapse.answer = JSONResponse(
        {"errcode": "M_MISSING_TOKEN"}, 401, headers={"server": "nginx/1.22.1"}
    )
    finished = synapse_says(synapse_url)
    assert finished.returncode == 0
    assert "nginx/1.22.1" in found(finished, "note")[0]


def test_synapse_that_hangs_is_waited_for_as_long_as_the_router_does(synapse, synapse_url):
    synapse.held = True
    start = time.monotonic()
    line = one_wrong(synapse_says(synapse_url, timeout="0.5"))
    assert "within 0.5 s" in line
    assert time.monotonic() - start < 10
    finished = synapse_says(synapse_url, synapse_url, timeout="0.5")
    assert all("within 0.25 s, its share" in line for line in found(finished))


def test_sockets_of_synapse_that_cannot_be_used_have_their_remedy(tmp_path):
    (tmp_path / "file").touch()
    assert "no such socket" in one_wrong(synapse_says(f"unix:{tmp_path}/missing"))
    assert "no socket" in one_wrong(synapse_says(f"unix:{tmp_path}/file"))


# A token.


def test_token_is_taken_from_standard_input(synapse_url):
    finished = check(
        *("--only", "token", "--synapse-url", synapse_url, "--token-file", "-"),
        stdin=f"{SECRET}\r\n".encode(),
    )
    assert finished.returncode == 0
    assert "@alice:example.org's, identifier alice (opaque" in finished.stdout


@pytest.mark.parametrize(
    ("token", "status", "words"),
    [
        (NATIVE.decode(), 0, "native"),
        ("odd", 0, "identifier %C3%A4"),
        ("service", 0, "no device"),
        ("unknown", 1, "rejects it"),
        ("breaking", 1, "fails over this token"),
        ("none", 1, "no user ID"),
    ],
)
def test_tokens_are_told_apart(synapse_url, token_file, token, status, words):
    finished = check(
        *("--only", "token", "--synapse-url", synapse_url, "--token-file", token_file(token))
    )
    assert finished.returncode == status
    assert words in finished.stdout


def test_token_that_cannot_be_asked_about_says_why_synapse_does_not_answer(closed, token_file):
    finished = check(
        *("--only", "token", "--synapse-url", f"http://{closed}"),
        *("--token-file", token_file(SECRET)),
    )
    assert finished.returncode == 1
    assert "nobody listens there" in finished.stdout
    assert "cannot be asked whose it is" in finished.stdout


def test_token_that_names_another_user_is_noted(synapse, synapse_url, token_file):
    synapse.owners[NATIVE.decode()] = "@bob:example.org"
    finished = check(
        *("--only", "token", "--synapse-url", synapse_url, "--token-file", token_file(NATIVE))
    )
    assert "names somebody else" in found(finished, "note")[0]
    assert NATIVE.decode() not in finished.stdout


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"  \n", "empty"),
        (f"{SECRET}\n{SECRET}\n", "more than one line"),
        (f"{SECRET}\n\n", "more than one line"),
        (f"Bearer {SECRET}", "Bearer"),
        (f" {SECRET}", "no access token"),
        (b"very-secret-token\xff", "no access token"),
        (b"a" * 1_000_000, "no access token"),
    ],
)
def test_file_without_a_token_is_wrong_and_not_quoted(synapse_url, token_file, content, word):
    given = ("--only", "token", "--synapse-url", synapse_url)
    finished = check(*given, "--token-file", token_file(content))
    line = one_wrong(finished)
    assert word in line
    assert str(token_file(content)) in line
    assert "very-secret" not in finished.stdout


def test_standard_input_that_is_closed_is_said():
    finished = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m whoami_router check --only token --token-file - <&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be read" in one_wrong(finished)


def test_file_without_an_end_is_not_read_to_it():
    finished = check("--only", "token", "--token-file", "/dev/zero")
    assert "no access token" in one_wrong(finished)


def test_file_that_cannot_be_read_is_wrong(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        line = one_wrong(check("--only", "token", "--token-file", path))
        assert "cannot be read" in line
        assert f"{path}" in line


def test_files_that_cannot_be_read_keep_nothing_else_from_being_looked_at(
    router, synapse_url, tmp_path
):
    given = ("--synapse-url", synapse_url, "--listen", router.address)
    missing = ("--token-file", tmp_path / "none", "--nginx-conf", tmp_path / "none.conf")
    finished = check(*given, *missing, "--json")
    assert (finished.returncode, finished.stderr) == (1, "")
    findings = json.loads(finished.stdout)["findings"]
    assert [(one["part"], one["status"]) for one in findings] == [
        ("synapse", "ok"),
        ("token", "wrong"),
        *[("router", "ok")] * 3,
        ("nginx", "wrong"),
    ]
    assert all(one["remedy"] for one in findings if one["status"] == "wrong")


def test_file_is_read_only_for_the_parts_that_use_it(router, tmp_path):
    given = ("--listen", router.address, "--token-file", tmp_path / "none")
    assert "cannot be read" in one_wrong(check("--only", "router", *given))
    assert "cannot be read" not in check("--only", "synapse", *given).stdout


@pytest.mark.parametrize("path", ["none.conf", "", "link"])
def test_configuration_that_cannot_be_read_is_wrong(tmp_path, path):
    (tmp_path / "link").symlink_to("nowhere")
    line = one_wrong(check("--only", "nginx", "--nginx-conf", tmp_path / path))
    assert "cannot read" in line


TOKENS_FOR_FILES = [
    NATIVE.decode(),
    "mat_aGVsbG8gd29ybGQ",
    "mct_aGVsbG8",
    "syt_YS8/Yg_random",
    "Bearer syt_YS8/Yg_random",
    SECRET,
    "MDAxOGxvY2F0aW9u/IGxvY2Fs",
]


@pytest.mark.parametrize("token", TOKENS_FOR_FILES)
def test_token_in_place_of_its_file_is_not_repeated(token):
    finished = check("--only", "token", "--token-file", token)
    assert "the file given by --token-file cannot be read" in one_wrong(finished)
    for part in (token, token.removeprefix("Bearer ")[:8]):
        assert part not in finished.stdout + finished.stderr


def test_file_named_like_a_token_is_not_named(tmp_path):
    name = tmp_path / "syt_secret_name"
    name.touch()
    finished = check("--only", "token", "--token-file", name)
    assert "the file given by --token-file is empty" in one_wrong(finished)


URLS_WITH_PASSWORDS = [
    "http://admin:hunter2@127.0.0.1:8008",
    "http://admin:hunter2/@/x@host",
    "admin:hunter2@host:8008",
    "http://hunter2@host",
]


@pytest.mark.parametrize("url", URLS_WITH_PASSWORDS)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_password_in_a_url_is_not_repeated(command, url):
    finished = subprocess.run(
        [sys.executable, "-m", "whoami_router", command, "--synapse-url", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 2
    assert "hunter2" not in finished.stdout + finished.stderr
    assert f"...@{url.rpartition('@')[2]}' needs http://host:port" in finished.stderr


def test_file_that_others_may_read_is_noted(synapse_url, token_file):
    given = ("--only", "token", "--synapse-url", synapse_url)
    path = token_file(SECRET, mode=0o644)
    finished = check(*given, "--token-file", path)
    assert finished.returncode == 0
    assert "chmod 600" in found(finished, "note")[0]
    assert found(check(*given, "--token-file", token_file(SECRET)), "note") == []


def test_servers_that_are_not_ours_are_sent_no_token(synapse, synapse_url, token_file):
    """Neither as Synapse nor as the router."""
    synapse.answer = HTMLResponse("<html>", 404)
    address = synapse_url.removeprefix("http://")
    finished = check(
        *("--synapse-url", synapse_url, "--listen", address, "--token-file", token_file(SECRET))
    )
    assert finished.returncode == 1
    assert "cannot be asked whose it is" in finished.stdout
    assert len(synapse.requests) >= 3
    assert all("authorization" not in request.headers for request in synapse.requests)


# A router.


def router_says(*arguments, **environment):
    return check("--only", "router", *arguments, **environment)


def test_router_is_healthy_whatever_is_with_synapse(tmp_path, closed):
    """It is a container's health check: a restart would make the router forget whom it knows."""
    with Router(tmp_path, f"http://{closed}") as router:
        finished = router_says("--listen", router.address)
        assert finished.returncode == 0, finished.stdout
        line = one_wrong(with_a_synapse(router))
    assert "/ready answers 503: Synapse cannot be asked" in line


def with_a_synapse(router):
    """Return what is said when Synapse answers us, and not the router."""
    with served(FakeSynapse()) as address:
        return check(
            *("--only", "router", "--only", "synapse"),
            *("--listen", router.address, "--synapse-url", f"http://{address}"),
        )


@pytest.mark.parametrize("kind", ["tcp", "unix", "every address"])
def test_router_is_found_wherever_it_listens(tmp_path, synapse_url, kind):
    port = free_port()
    listen, connects = {
        "tcp": (f"127.0.0.1:{port}", f"127.0.0.1:{port}"),
        "unix": (f"unix:{tmp_path}/sock", f"unix:{tmp_path}/sock"),
        "every address": (f"0.0.0.0:{port}", f"127.0.0.1:{port}"),
    }[kind]
    with Router(tmp_path, synapse_url, listen=listen):
        finished = router_says("--listen", listen)
    assert finished.returncode == 0, finished.stdout
    assert connects in finished.stdout


def test_admin_listener_is_asked_for_health(tmp_path, synapse_url):
    admin = f"unix:{tmp_path}/admin"
    with Router(tmp_path, synapse_url, "--admin-listen", admin) as router:
        both = ("--listen", router.address, "--admin-listen", admin)
        finished = router_says(*both)
        assert finished.returncode == 0, finished.stdout
        assert f"{admin}: it lives" in finished.stdout
        assert "give --admin-listen" in one_wrong(router_says("--listen", router.address))
        assert "the place of --admin-listen" in one_wrong(router_says("--listen", admin))
        unknown = router_says("--listen", "fd:3", "--admin-listen", admin)
        assert unknown.returncode == 0
        assert "only the service itself knows" in found(unknown, "note")[0]


@pytest.mark.parametrize("listen", ["fd:3", "127.0.0.1:0"])
def test_address_that_only_the_service_knows_is_said_to_be_needed(listen):
    line = one_wrong(router_says("--listen", listen))
    assert "--listen 127.0.0.1:9009" in line


def test_nobody_there_is_said(tmp_path, closed):
    assert "nobody listens" in one_wrong(router_says("--listen", closed))
    assert "no such socket" in one_wrong(router_says("--listen", f"unix:{tmp_path}/missing"))


@pytest.mark.parametrize(
    "answer", [HTMLResponse("<html>", 404), Response(status_code=204), JSONResponse({})]
)
def test_other_server_is_said_to_be_one(synapse, synapse_url, answer):
    synapse.answer = answer
    line = one_wrong(router_says("--listen", synapse_url.removeprefix("http://")))
    assert "another HTTP server" in line or "the place of --admin-listen" in line


def test_router_that_hangs_is_given_up_when_nginx_would():
    with socket.create_server(("127.0.0.1", 0)) as hung:
        start = time.monotonic()
        line = one_wrong(router_says("--listen", f"127.0.0.1:{hung.getsockname()[1]}"))
    assert "within 3 s" in line
    assert time.monotonic() - start < 10


def test_router_names_the_user_of_the_token(router, synapse_url, token_file):
    path = token_file(SECRET)
    given = ("--listen", router.address, "--synapse-url", synapse_url, "--token-file", path)
    assert "alice's there, too (source whoami)" in check(*given).stdout
    assert "alice's there, too (source cache)" in check(*given).stdout


@contextmanager
def another_synapse(owner):
    other = FakeSynapse(owners={SECRET: owner} if owner else {})
    with served(other) as address:
        yield f"http://{address}"


@pytest.mark.parametrize(
    ("owner", "words"),
    [("@bob:example.org", "names bob, and Synapse alice"), (None, "rejects the token")],
)
def test_router_of_another_synapse_is_found_by_the_token(
    tmp_path, synapse_url, token_file, owner, words
):
    with another_synapse(owner) as other, Router(tmp_path, other) as router:
        line = one_wrong(
            check(
                *("--listen", router.address, "--synapse-url", synapse_url),
                *("--token-file", token_file(SECRET)),
            )
        )
    assert words in line


def test_fallback_for_the_token_is_found(tmp_path, closed, token_file):
    with Router(tmp_path, f"http://{closed}") as router:
        line = one_wrong(
            router_says("--listen", router.address, "--token-file", token_file(SECRET))
        )
    assert "source fingerprint" in line


def test_router_that_is_told_to_go_by_the_token_is_not_wrong(tmp_path, token_file):
    synapse = FakeSynapse(owners={NATIVE.decode(): "@alice:example.org"})
    with (
        served(synapse) as address,
        Router(tmp_path, f"http://{address}", "--native-tokens", "decode") as router,
    ):
        asked = check(
            *("--listen", router.address, "--synapse-url", f"http://{address}"),
            *("--token-file", token_file(NATIVE.decode())),
        )
    assert asked.returncode == 0
    assert "--native-tokens=decode" in asked.stdout


def test_name_that_no_host_can_have_is_found():
    assert "no host of this name" in one_wrong(router_says("--listen", "a..b:9009"))


# What it costs.


def test_health_check_loads_nothing_that_is_slow_to_load(router):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
        f"sys.argv = ['x', 'check', '--only', 'router', '--listen', {router.address!r}]\n"
        "from whoami_router.cli import main\n"
        "main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines()[-1] == "[]"
