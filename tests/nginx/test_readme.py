"""The lines that README.md adds to an existing nginx make it route by user."""

import re
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.nginx.conftest import USERS
from tests.stack.nginx import SHIPPED
from tests.stack.process import Process, accepts, free_port

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
def own_nginx(router, pools, *, copied, main="", edits=()):
    """Start an nginx with a configuration of one's own, as the README adds to it."""
    # Where the user that nginx's workers run as can get to.
    with TemporaryDirectory(prefix="wr-site-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        files = directory / "nginx"
        for file in copied:
            (files / file).parent.mkdir(parents=True, exist_ok=True)
            text = (SHIPPED / file).read_text()
            for old, new in (("/dev/shm/whoami_router", f"{directory}/edge"), *edits):
                text = text.replace(old, new)
            (files / file).write_text(text)
        address = f"127.0.0.1:{free_port()}"
        site = documented_configuration(
            {
                "127.0.0.1:9009": router.address,
                "127.0.0.1:8083": pools["sync-1"].address,
                "127.0.0.1:8084": pools["sync-2"].address,
                "listen 8080;": f"listen {address};",
            }
        )
        (files / "nginx.conf").write_text(
            f"""
            {main}
            pid {directory}/pid;
            events {{ }}
            http {{
                client_body_temp_path {directory}/client_body;
                proxy_temp_path {directory}/proxy;
                fastcgi_temp_path {directory}/fastcgi;
                uwsgi_temp_path {directory}/uwsgi;
                scgi_temp_path {directory}/scgi;
                access_log off;
                include conf.d/*.conf;
                {site}
            }}"""
        )
        nginx = Process(
            "nginx",
            ["nginx", "-e", "stderr", "-c", files / "nginx.conf", "-g", "daemon off;"],
            directory / "log",
            ready=lambda: accepts(address),
        )
        with nginx, httpx.Client(base_url=f"http://{address}") as client:
            yield client, directory


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
    with own_nginx(router, pools, copied=copied) as (client, _):
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
    with own_nginx(router, pools, copied=copied, main=limit, edits=[switch]) as (client, directory):
        each_user_has_a_worker(client)
        assert len(list((directory / "edge").iterdir())) == 3 * len(USERS)
