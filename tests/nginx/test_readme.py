"""The lines that README.md adds to an existing nginx make it route by user."""

import re
import shutil
from pathlib import Path

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


def test_documented_lines_route_each_user_to_one_worker(tmp_path, pools, router):
    files = tmp_path / "nginx"
    (files / "snippets").mkdir(parents=True)
    for copied in re.findall(
        r"`nginx/(snippets/\w+\.conf|conf\.d/maps\.conf)`", README.read_text()
    ):
        (files / copied).parent.mkdir(exist_ok=True)
        shutil.copy(SHIPPED / copied, files / copied)
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
        pid {tmp_path}/pid;
        events {{ }}
        http {{
            client_body_temp_path {tmp_path}/client_body;
            proxy_temp_path {tmp_path}/proxy;
            fastcgi_temp_path {tmp_path}/fastcgi;
            uwsgi_temp_path {tmp_path}/uwsgi;
            scgi_temp_path {tmp_path}/scgi;
            access_log off;
            include conf.d/*.conf;
            {site}
        }}"""
    )
    nginx = Process(
        "nginx",
        ["nginx", "-e", "stderr", "-c", files / "nginx.conf", "-g", "daemon off;"],
        tmp_path / "log",
        ready=lambda: accepts(address),
    )
    with nginx, httpx.Client(base_url=f"http://{address}") as client:
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
