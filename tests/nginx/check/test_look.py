"""A finding says where, and a file that cannot be looked at is one finding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nginx.check.conftest import only
from tests.nginx.check.edits import ROUTER, SERVER, UPSTREAMS
from tests.nginx.check.own import OWN, OWN_ROUTER, written
from tests.stack.nginx import SHIPPED
from whoami_router.check.findings import WRONG
from whoami_router.check.nginx import look


def test_findings_name_the_line(found):
    finding = only(found((ROUTER, "X-Original-URI  $request_uri", "X-Original-URI $uri")))
    file, line = finding.place.rsplit(":", 1)
    assert "X-Original-URI $uri" in Path(file).read_text().splitlines()[int(line) - 1]


def test_part_of_a_configuration_is_not_taken_for_the_whole():
    for file in (UPSTREAMS, SERVER):
        finding = only(look(SHIPPED / file, whoami_timeout=2, listen=None))
        assert "part of a configuration" in finding.what
        assert "nginx.conf" in finding.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http { server {", "nginx.conf"),
        ("include missing.conf;", "missing.conf"),
        ("http { server { location { proxy_pass http://a; } } }", "location is not complete"),
        ("http { server { location / { proxy_pass; } } }", "proxy_pass is not complete"),
        (
            'http { map $uri $x { "~(" y; } server { location ~ "(" { proxy_pass http://$x; } } }',
            "",
        ),
    ],
)
def test_what_nginx_could_not_read_either_is_no_traceback(tmp_path, text, words):
    path = tmp_path / "nginx.conf"
    path.write_text(text)
    finding = only(look(path, whoami_timeout=2, listen=None))
    assert words in f"{finding.place} {finding.what}"


def test_command_prints_place_and_remedy(tmp_path, shipped, asked):
    own = OWN.replace("internal;", "").replace(OWN_ROUTER, asked)
    path = written(tmp_path, own, files={})
    command = [sys.executable, "-m", "whoami_router", "check", "--only", "nginx"]
    said = subprocess.run(
        [*command, "--nginx-conf", path], capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert f"wrong  nginx  {path}:" in said.stdout
    assert "remedy: internal;" in said.stdout
    as_object = subprocess.run(
        [*command, "--nginx-conf", path, "--json"], capture_output=True, text=True, check=False
    )
    [wrong] = [one for one in json.loads(as_object.stdout)["findings"] if one["status"] == WRONG]
    assert wrong["place"].startswith(f"{path}:")
    good = subprocess.run(
        [*command, "--nginx-conf", shipped / "nginx.conf"], capture_output=True, check=False
    )
    assert good.returncode == 0
