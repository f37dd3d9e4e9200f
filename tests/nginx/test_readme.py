"""The lines that README.md adds to an existing nginx make it route by user."""

import re
from contextlib import contextmanager
from pathlib import Path

from tests.nginx.conftest import USERS
from tests.nginx.own import own_nginx
from tests.stack.nginx import SHIPPED

README = Path(__file__).parents[2] / "README.md"


def documented_configuration(addresses):
    """Return the block of README.md with the added lines in it, and other addresses."""
    [block] = re.findall(r"```diff\n(.*?)```", README.read_text(), flags=re.DOTALL)
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
    copied = set(named_files(section("Add it to your nginx"))) & {
        "snippets/whoami_router.conf",
        "snippets/route_by_user.conf",
        "snippets/debug_headers.conf",
        "conf.d/maps.conf",
    }
    with readme_nginx(router, pools, copied=copied) as (client, _):
        each_user_has_a_worker(client)


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
