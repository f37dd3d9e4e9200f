"""What is found in the shipped files with edits, and in a configuration of one's own."""

import re
import shutil

import pytest
from starlette.responses import Response

from tests.fake_synapse import served
from tests.nginx.check.edits import LISTEN, ROUTER, UPSTREAMS
from tests.nginx.check.own import OWN_ROUTER, written
from tests.nginx.conftest import FakeRouter
from tests.stack.nginx import SHIPPED
from whoami_router.check.findings import OK, WRONG
from whoami_router.check.nginx import look
from whoami_router.settings import parse_listen


@pytest.fixture(scope="module")
def asked():
    """Return the address of what answers as whoami-router does."""
    answer = Response(status_code=204, headers={"X-User-Identifier-Source": "none"})
    with served(FakeRouter(answer)) as address:
        yield address


@pytest.fixture
def shipped(tmp_path, asked):
    """Return a copy of the shipped files that has the router where one is."""
    files = shutil.copytree(SHIPPED, tmp_path / "shipped")
    upstreams = files / UPSTREAMS
    upstreams.write_text(upstreams.read_text().replace(LISTEN, asked))
    return files


@pytest.fixture
def found(tmp_path, asked):
    """Return a function: what is found in the shipped files with edits, but for what is right.

    The router that they name is moved to ``at`` where one is.
    """

    def found(*edits, listen=None, whoami_timeout=2.0, at=asked):
        files = shutil.copytree(SHIPPED, tmp_path / "nginx", dirs_exist_ok=True)
        for file, old, new in edits:
            text = (files / file).read_text()
            assert old in text, (file, old)
            (files / file).write_text(text.replace(old, new))
        for file in (UPSTREAMS, ROUTER):
            (files / file).write_text((files / file).read_text().replace(LISTEN, at))
        listen = listen or parse_listen(at)
        findings = look(files / "nginx.conf", whoami_timeout=whoami_timeout, listen=listen)
        return [one for one in findings if one.status != OK]

    return found


@pytest.fixture
def finds_only(found):
    """Return a function: make sure that one thing is found in the shipped files with edits."""

    def finds_only(edits, status, words, file):
        finding = only(found(*edits))
        assert (finding.status, words in finding.what) == (status, True), finding
        assert file is None or file in finding.place
        assert re.search(r":[0-9]+$", finding.place) if finding.place else status == "note"
        assert finding.remedy or status == "note"

    return finds_only


@pytest.fixture(scope="module")
def found_in(asked):
    """Return a function: what is found in a configuration whose router is where one is."""

    def found_in(directory, http, **more):
        for address in (LISTEN, OWN_ROUTER):
            http = http.replace(f"server {address};", f"server {asked};")
        path = written(directory, http, **more)
        findings = look(path, whoami_timeout=2.0, listen=parse_listen(asked))
        return [one for one in findings if one.status != OK]

    return found_in


def only(findings):
    """Return the one thing that is wrong, or else the one that is noted."""
    [finding] = [one for one in findings if one.status == WRONG] or findings
    return finding
