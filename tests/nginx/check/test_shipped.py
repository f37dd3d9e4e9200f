"""Nothing is found in the files that are shipped and documented."""

import shutil
from pathlib import Path

import pytest

from tests.nginx.check.conftest import only
from tests.nginx.check.edits import LOG, UPSTREAMS
from tests.nginx.check.own import README, README_FILES
from tests.nginx.edge import TRUSTED_PROXY
from tests.stack.nginx import ACCESS_LOG, DEBUG_HEADERS, EDGE_CACHE, SHIPPED, SINGLE_SIGN_ON
from whoami_router.check.findings import NOTE, OK, WRONG
from whoami_router.check.nginx import look
from whoami_router.settings import Unix

ROOT = SHIPPED.parent


@pytest.mark.parametrize(
    "edits",
    [
        [],
        [ACCESS_LOG, EDGE_CACHE, DEBUG_HEADERS, TRUSTED_PROXY, SINGLE_SIGN_ON],
        [(LOG, "\naccess_log off;", "\naccess_log /dev/stdout routing_json;")],
    ],
    ids=["as shipped", "with everything else switched on", "logged as JSON"],
)
def test_nothing_is_found_in_the_shipped_files(found, edits):
    assert found(*edits) == []


def test_what_is_right_is_said(shipped):
    said = [one.what for one in look(shipped / "nginx.conf", whoami_timeout=2, listen=None)]
    assert any("is asked, and fails open" in what for what in said)
    assert any("synapse_sync (2 servers)" in what for what in said)
    assert any("no log shows" in what for what in said)


def test_nothing_is_wrong_with_the_files_of_compose(tmp_path):
    files = shutil.copytree(SHIPPED, tmp_path / "nginx")
    for file in (UPSTREAMS, LOG):
        shutil.copy(ROOT / "deploy/compose" / Path(file).name, files / file)
    findings = look(
        files / "nginx.conf", whoami_timeout=2, listen=Unix(Path("/sockets/router.sock"))
    )
    in_container, one_server = [one for one in findings if one.status != OK]
    assert in_container.status == NOTE
    assert "unix:/sockets/router.sock cannot be told from here" in in_container.what
    assert one_server.what == "one server only, nothing to choose: synapse_initial_sync"


def test_nothing_is_wrong_with_the_lines_of_the_readme(found_in, tmp_path):
    findings = found_in(tmp_path, README, files=README_FILES)
    assert [one for one in findings if one.status == WRONG] == []
    assert all(one.remedy for one in findings)


def test_nothing_is_wrong_with_the_edge_cache_of_the_readme(found_in, tmp_path):
    file, old, new = EDGE_CACHE
    files = README_FILES | {file: README_FILES[file].replace(old, new)}
    good = found_in(tmp_path, README, files=files, main="worker_rlimit_nofile 20000;")
    assert [one for one in good if one.status == WRONG] == []
    without = only(found_in(tmp_path, README, files=files))
    assert without.remedy.startswith("worker_rlimit_nofile 16512")


def test_unrelated_servers_are_none_of_its_business(found_in, tmp_path):
    unrelated = """
        upstream blog { server 127.0.0.1:1; server 127.0.0.1:2; }
        map $host $site { default nowhere; }
        server {
            access_log /var/log/blog.log;
            location / { auth_request /sso; proxy_pass http://blog; }
            location = /sso { proxy_pass http://127.0.0.1:4180/oauth2/auth; }
            location /other { proxy_pass http://$site; }
        }
    """
    (tmp_path / "alone").mkdir()
    (tmp_path / "both").mkdir()
    alone = found_in(tmp_path / "alone", README, files=README_FILES)
    both = found_in(tmp_path / "both", unrelated + README, files=README_FILES)
    assert [one.what for one in both] == [one.what for one in alone]
