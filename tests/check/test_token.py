"""What ``whoami-router check`` finds of a token and its file, and that it repeats neither."""

import subprocess
import sys

import pytest
from starlette.responses import HTMLResponse

from tests.check.command import SECRET, check, found, one_wrong
from tests.test_tokens import NATIVE


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


def test_file_is_read_only_for_the_parts_that_use_it(router, tmp_path):
    given = ("--listen", router.address, "--token-file", tmp_path / "none")
    assert "cannot be read" in one_wrong(check("--only", "router", *given))
    assert "cannot be read" not in check("--only", "synapse", *given).stdout


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
