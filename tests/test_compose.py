"""What can be seen of docker-compose.yml and its files without images to run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.stack.nginx import SHIPPED, check

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "deploy/compose/synapse"
UPSTREAMS = ROOT / "deploy/compose/upstreams.conf"


@pytest.fixture(scope="module")
def services():
    checked = subprocess.run(
        ["docker-compose", "--file", ROOT / "docker-compose.yml", "config"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    return yaml.safe_load(checked.stdout)["services"]


def blocks(path):
    """Return the upstreams of a file: name to the lines that are not addresses."""
    return {
        name: sorted(
            " ".join(line.partition("#")[0].split())
            for line in body.splitlines()
            if line.strip() and not line.strip().startswith(("server ", "#"))
        )
        for name, body in re.findall(
            r"^upstream (\w+) {(.*?)^}", path.read_text(), re.MULTILINE | re.DOTALL
        )
    }


def test_nginx_takes_the_shipped_files_with_those_of_compose_mounted_over_them(tmp_path):
    mounted = [UPSTREAMS, ROOT / "deploy/compose/access_log.conf"]
    assert "test is successful" in check(tmp_path, *mounted)


def test_upstreams_of_compose_are_the_shipped_ones_but_for_their_addresses():
    assert blocks(UPSTREAMS) == blocks(SHIPPED / "conf.d/upstreams.conf")


def test_every_upstream_is_a_service_that_listens_there(services):
    sockets = re.findall(r"server unix:/sockets/([\w-]+)\.sock;", UPSTREAMS.read_text())
    assert len(sockets) == 5
    for name in sockets:
        assert "healthcheck" in services[name]
        if name != "router":
            told = yaml.safe_load((CONFIGURATION / f"{name}.yaml").read_text())
            listeners = told.get("listeners") or told["worker_listeners"]
            [listener] = [each for each in listeners if "path" in each]
            assert listener["path"] == f"/sockets/{name}.sock"
            assert listener["x_forwarded"] is True
            assert services[name]["command"] in (name, [name])


def test_router_and_nginx_can_do_no_harm(services):
    for name in ("router", "nginx"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
    assert services["router"]["network_mode"] == "none"
    assert re.search(r"^USER (?!root|0\b)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_only_nginx_is_published_and_only_to_this_machine(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["nginx"]
    [port] = published["nginx"]
    assert port in ("127.0.0.1:8008:8080/tcp", "127.0.0.1:8008:8080") or (
        port["host_ip"],
        str(port["published"]),
        port["target"],
    ) == ("127.0.0.1", "8008", 8080)


def settings_in(tree):
    """Yield every key that has a text, and the text."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            yield from settings_in(value)
        else:
            yield str(key), str(value or "")


def test_no_secret_is_committed(services):
    found = list(settings_in(services))
    for path in CONFIGURATION.glob("*.yaml"):
        found += settings_in(yaml.safe_load(path.read_text()))
    secret = [(key, value) for key, value in found if re.search("secret|pass|key", key.lower())]
    assert sorted(key for key, _ in secret) == ["POSTGRES_PASSWORD_FILE", "passfile"]
    assert all(value.startswith("/secrets/") for _, value in secret)


def test_synapse_is_the_version_that_the_tests_run():
    [image] = re.findall(
        r"matrixdotorg/synapse:v([\d.]+)", (ROOT / "docker-compose.yml").read_text()
    )
    requirements = (ROOT / "tests/stack/synapse-requirements.txt").read_text()
    assert f"]=={image}\n" in requirements
