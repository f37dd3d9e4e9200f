"""What docs/deploy.md says about several processes, done as it says."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from tests.fake_synapse import FakeSynapse, served
from tests.stack.nginx import check
from tests.stack.process import Process, accepts

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/deploy.md"
UNIT = ROOT / "deploy/systemd/whoami-router@.service"
PROGRAM = "/opt/whoami-router/bin/whoami-router"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


@pytest.fixture
def unit():
    # Not strict: a unit may repeat an option.
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str
    parsed.read(UNIT)
    return parsed


def test_systemd_takes_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(PROGRAM, shutil.which("true")))
    checked = subprocess.run(
        ["systemd-analyze", "--recursive-errors=no", "verify", copy],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_sockets_of_the_unit_are_those_of_nginx(unit):
    service = unit["Service"]
    assert service["RuntimeDirectory"] == "whoami-router-%i"
    assert "--listen unix:/run/whoami-router-%i/sock" in service["ExecStart"]
    documented = re.findall(r"server unix:(/run/\S+);", blocks("nginx")[0])
    assert documented == [f"/run/whoami-router-{number}/sock" for number in (1, 2)]


def test_only_the_group_of_nginx_gets_to_the_socket_and_a_crash_is_not_the_end(unit):
    service = unit["Service"]
    assert (service["RuntimeDirectoryMode"], service["Group"]) == ("0750", "www-data")
    assert service["DynamicUser"] == "yes"
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")


def test_two_processes_run_as_the_unit_says(unit, tmp_path):
    synapse = FakeSynapse(owners={"a": "@alice:h"})
    with ExitStack() as stack:
        address = stack.enter_context(served(synapse))
        for number in ("1", "2"):
            run = tmp_path / f"whoami-router-{number}"
            run.mkdir()
            command = unit["Service"]["ExecStart"].replace("%i", number)
            command = command.replace("/run/", f"{tmp_path}/").replace(
                PROGRAM, f"{sys.executable} -m whoami_router"
            )
            stack.enter_context(
                Process(
                    f"whoami-router {number}",
                    shlex.split(command),
                    tmp_path / "log",
                    ready=lambda run=run: accepts(f"unix:{run}/sock"),
                    environment={"WHOAMI_ROUTER_SYNAPSE_URL": f"http://{address}"},
                )
            )
            transport = httpx.HTTPTransport(uds=f"{run}/sock")
            with httpx.Client(transport=transport, base_url="http://router") as client:
                answer = client.get("/resolve", headers={"authorization": "Bearer a"})
            assert answer.headers["x-user-identifier"] == "alice"


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
