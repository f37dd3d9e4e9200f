"""Whoever sends requests gives up an idle connection first, or some request meets its end."""

import re
import subprocess

import pytest

from tests.stack.nginx import POOLS, SHIPPED
from tests.stack.synapse import PYTHON
from whoami_router import server


@pytest.fixture(scope="module")
def idle_seconds_of_synapse():
    """Returns after how many seconds the installed Synapse closes an idle connection."""
    ask = "from twisted.web.server import Site; print(Site(None).timeOut)"
    return float(subprocess.run([PYTHON, "-c", ask], capture_output=True, check=True).stdout)


def test_nginx_gives_up_idle_connections_before_synapse(idle_seconds_of_synapse):
    text = (SHIPPED / "conf.d/upstreams.conf").read_text()
    pools = re.findall(r"upstream synapse_\w+ {[^}]*keepalive_timeout (\d+)s;", text)
    assert len(pools) == len(POOLS)
    assert all(int(seconds) < idle_seconds_of_synapse for seconds in pools)


def test_router_gives_up_idle_connections_before_synapse(idle_seconds_of_synapse):
    assert idle_seconds_of_synapse > server._KEEPALIVE_SECONDS
