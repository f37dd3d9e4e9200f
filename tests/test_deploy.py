"""What docs/deploy.md says about several processes, done as it says."""

import re
import subprocess
from pathlib import Path

import yaml

from tests.stack.nginx import check

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/deploy.md"
SOCKETS = ROOT / "deploy/systemd/whoami-router@.socket"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


def test_documented_sockets_are_those_of_the_units():
    [path] = re.findall(r"^ListenStream=(/.*)$", SOCKETS.read_text(), re.MULTILINE)
    documented = re.findall(r"server unix:(/run/\S+);", blocks("nginx")[0])
    assert documented == [path.replace("%i", number) for number in ("1", "2")]


def test_nginx_takes_the_documented_upstream(tmp_path):
    documented, _ = blocks("nginx")
    shipped = (ROOT / "nginx/conf.d/upstreams.conf").read_text()
    text, count = re.subn(r"upstream whoami_router {.*?\n}\n", documented, shipped, flags=re.DOTALL)
    assert count == 1
    replaced = tmp_path / "upstreams.conf"
    replaced.write_text(text)
    assert "test is successful" in check(tmp_path, replaced)


def test_compose_takes_the_documented_service(tmp_path):
    [service] = blocks("yaml")
    text = (ROOT / "docker-compose.yml").read_text()
    place = text.index("\n  nginx:\n")
    file = tmp_path / "docker-compose.yml"
    file.write_text(text[:place] + "\n" + service + text[place:])
    checked = subprocess.run(
        ["docker-compose", "--project-directory", ROOT, "--file", file, "config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    services = yaml.safe_load(checked.stdout)["services"]
    one, other = services["router"], services["router-2"]
    sockets = [each.pop("environment")["WHOAMI_ROUTER_LISTEN"] for each in (one, other)]
    assert one == other
    assert sockets == ["unix:/sockets/router.sock", "unix:/sockets/router-2.sock"]
    assert blocks("nginx")[1].strip() == f"server {sockets[1]};"
