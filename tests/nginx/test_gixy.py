"""gixy, which knows nginx's own traps, has nothing to say about the shipped files."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.nginx.edge import TRUSTED_PROXY
from tests.stack.nginx import ACCESS_LOG, EDGE_CACHE, SHIPPED

# `proxy_pass http://$pool` names an upstream of upstreams.conf, and nginx looks there first. A
# resolver is for names that are in DNS only.
NOT_OURS = "missing_resolver"

# Not the debug headers: with them a response has no X-Request-ID, which gixy says.
EDITS = {
    "as shipped": [],
    "with everything else switched on": [
        ACCESS_LOG,
        EDGE_CACHE,
        TRUSTED_PROXY,
        ("conf.d/synapse.conf", "#listen ", "listen "),
        ("conf.d/well_known.conf", "#example.org", "example.org"),
    ],
}


def findings(directory, *edits):
    """Return what gixy says, of every severity, about the files with these edits."""
    files = shutil.copytree(SHIPPED, directory / "nginx")
    for file, old, new in edits:
        text = (files / file).read_text()
        assert old in text
        (files / file).write_text(text.replace(old, new))
    command = [sys.executable, "-m", "gixy", "--format", "json", "--skips", NOT_OURS]
    said = subprocess.run(
        [*command, files / "nginx.conf"], check=False, capture_output=True, text=True
    )
    assert said.stderr == ""  # nor is there anything that it cannot read
    return [(finding["plugin"], finding["reason"]) for finding in json.loads(said.stdout)]


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_nothing_is_found(tmp_path, edits):
    assert findings(tmp_path, *edits) == []


@pytest.mark.parametrize(
    ("plugin", "file", "old", "new"),
    [
        ("host_spoofing", "snippets/proxy.conf", "$host$host_port", "$http_host"),
        ("version_disclosure", "nginx.conf", "server_tokens off;", "server_tokens on;"),
        ("http_splitting", "snippets/proxy.conf", "$forwarded_proto", "$uri"),
        ("regex_redos", "conf.d/synapse.conf", "location ~ ^/_matrix/(", "location ~ ^/(a+)+("),
    ],
)
def test_it_reads_all_files(tmp_path, plugin, file, old, new):
    assert plugin in dict(findings(tmp_path, (file, old, new)))
