"""``whoami-router check`` as a process: its options, its status, and what it never prints."""

import json
import subprocess
import sys

import pytest

from tests.check.command import SECRET, check, found, one_wrong


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


@pytest.mark.parametrize("path", ["none.conf", "", "link"])
def test_configuration_that_cannot_be_read_is_wrong(tmp_path, path):
    (tmp_path / "link").symlink_to("nowhere")
    line = one_wrong(check("--only", "nginx", "--nginx-conf", tmp_path / path))
    assert "cannot read" in line


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
