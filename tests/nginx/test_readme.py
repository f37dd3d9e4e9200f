"""The lines that README.md adds to an existing nginx make it route by user."""

import hashlib
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.nginx.conftest import USERS
from tests.nginx.own import own_nginx
from tests.stack.nginx import SHIPPED
from tests.stack.process import wait_until
from whoami_router.check.findings import NOTE, WRONG
from whoami_router.check.nginx import look
from whoami_router.settings import Tcp

README = Path(__file__).parents[2] / "README.md"
INSTALL = README.parent / "docs/install.md"
COPIED = {
    "snippets/whoami_router.conf",
    "snippets/route_by_user.conf",
    "snippets/debug_headers.conf",
    "conf.d/maps.conf",
}


def documented_lines(document):
    [block] = re.findall(r"```diff\n(.*?)```", document.read_text(), flags=re.DOTALL)
    return block


def documented_configuration(addresses):
    """Return the block of README.md with the added lines in it, and other addresses."""
    block = documented_lines(README)
    assert all(line[0] in "+ " for line in block.splitlines())
    text = "\n".join(line[1:] for line in block.splitlines())
    for documented, address in addresses.items():
        assert documented in text
        text = text.replace(documented, address)
    return text


def section(title):
    [text] = re.findall(
        rf"^## {title}\n(.*?)(?=^## )", README.read_text(), re.DOTALL | re.MULTILINE
    )
    return text


@contextmanager
def readme_nginx(router, pools, *, copied, main="", edits=()):
    """Start an nginx with a configuration of one's own, as the README adds to it."""
    files = {}
    for file in copied:
        files[file] = (SHIPPED / file).read_text()
        for old, new in edits:
            files[file] = files[file].replace(old, new)
    http = documented_configuration(
        {
            "127.0.0.1:9009": router.address,
            "127.0.0.1:8083": pools["sync-1"].address,
            "127.0.0.1:8084": pools["sync-2"].address,
            "/var/log/nginx/synapse.log": "/dev/stdout",
            "/var/log/nginx/error.log": "stderr",
        }
    )
    with own_nginx(http, main=main, files=files) as running:
        yield running


def named_files(text):
    return re.findall(r"`nginx/((?:snippets|conf\.d)/\w+\.conf)`", text)


def each_user_has_a_worker(client):
    spread = set()
    for user in USERS:
        servers = {
            client.get(
                "/_matrix/client/v3/sync",
                headers={"authorization": f"Bearer token-{user}-{device}"},
            ).json()["server"]
            for device in range(3)
        }
        assert len(servers) == 1
        spread |= servers
    assert spread == {"sync-1", "sync-2"}


def test_documented_lines_route_each_user_to_one_worker(router, pools):
    copied = COPIED & {*named_files(section("Add it to your nginx"))}
    with readme_nginx(router, pools, copied=copied) as (client, directory):
        each_user_has_a_worker(client)
        client.get("/_matrix/client/v3/sync?since=1&access_token=hidden")
        log = (directory / "log").read_text()
    # The router is that of all tests here: it may know the tokens.
    by_user = re.findall(r"source=(?:whoami|cache) upstream=127\.0\.0\.1:", log)
    assert len(by_user) == 3 * len(USERS)
    assert '"GET /_matrix/client/v3/sync" 200 ' in log
    assert "hidden" not in log


def test_client_that_gives_up_on_a_hung_router_is_logged_as_troubleshooting_says(pools):
    with socket.create_server(("127.0.0.1", 0)) as hung:
        router = SimpleNamespace(address=f"127.0.0.1:{hung.getsockname()[1]}")
        with readme_nginx(router, pools, copied=COPIED) as (client, directory):
            with pytest.raises(httpx.ReadTimeout):
                client.get("/_matrix/client/v3/sync", timeout=0.5)
            log = directory / "log"
            wait_until(lambda: " 499 " in log.read_text(), "nginx logs it")
            assert " 499 user=- source=- " in log.read_text()


def debians_nginx(directory):
    """Copy what Debian's package brings; skips where that is not here, or was changed."""
    asked = ["dpkg-query", "--show", "--showformat", "${Conffiles}", "nginx-common"]
    if shutil.which("dpkg-query") is None:
        pytest.skip("this is no Debian")
    conffiles = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    for line in conffiles.splitlines():
        file, md5 = line.split()[:2]
        name = Path(file).relative_to("/etc")
        if name.parts[0] != "nginx":
            continue
        text = Path(file).read_bytes()
        if hashlib.md5(text, usedforsecurity=False).hexdigest() != md5:
            pytest.skip(f"{file} is not as Debian has it")
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(text.replace(b"/etc/", f"{directory}/".encode()))
    # What the package's script makes.
    (directory / "nginx/sites-enabled").mkdir()
    (directory / "nginx/sites-enabled/default").symlink_to("../sites-available/default")
    return directory / "nginx"


# The notes are about headers, which each has in their own way.
@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        (None, []),
        ("access_log /var/log", ["this log shows access tokens"]),
        ("error_log /var/log", ["at level error nginx quotes"]),
    ],
)
def test_check_finds_nothing_wrong_with_debians_nginx_and_the_documented_lines(
    router, tmp_path, left_out, words
):
    nginx = debians_nginx(tmp_path)
    for file in COPIED:
        (nginx / file).parent.mkdir(exist_ok=True)
        shutil.copy(SHIPPED / file, nginx / file)
    lines = documented_configuration({"127.0.0.1:9009": router.address}).splitlines()
    kept = [line for line in lines if left_out is None or left_out not in line]
    (nginx / "conf.d/synapse.conf").write_text("\n".join(kept))
    host, port = router.address.split(":")
    found = look(nginx / "nginx.conf", whoami_timeout=2.0, listen=Tcp(host, int(port)))
    problems = [
        each.what
        for each in found
        if each.status == WRONG or (each.status == NOTE and "token" in each.what)
    ]
    assert len(problems) == len(words)
    assert all(each.startswith(begin) for each, begin in zip(problems, words, strict=True))


def test_documents_add_the_same_lines():
    listening = "server unix:/run/whoami-router-1/sock;"
    lines = documented_lines(README).replace("server 127.0.0.1:9009;", listening)
    assert lines == documented_lines(INSTALL)


def test_documented_steps_switch_the_edge_cache_on(router, pools):
    steps = section("When it has to be faster")
    uncommented, limit = re.findall(r"`(#include [^`]*|worker_rlimit_nofile [^`]*)`", steps)
    copied = {
        *named_files(steps),
        "snippets/route_by_user.conf",
        "snippets/debug_headers.conf",
        "conf.d/maps.conf",
    }
    switch = (uncommented, uncommented.removeprefix("#"))
    with readme_nginx(router, pools, copied=copied, main=limit, edits=[switch]) as (
        client,
        directory,
    ):
        each_user_has_a_worker(client)
        assert len(list((directory / "edge").iterdir())) == 3 * len(USERS)
