"""A Synapse that knows a few tokens, a router that asks it, and a file for a token."""

import pytest

from tests.check.command import SECRET
from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import free_port
from tests.stack.router import Router
from tests.test_tokens import NATIVE


@pytest.fixture
def synapse():
    return FakeSynapse(
        owners={
            SECRET: "@alice:example.org",
            NATIVE.decode(): "@alice:example.org",
            "odd": "@\u00e4:h",
            "none": "alice",
        },
        services={"service": ["@bot:example.org"]},
        breaking={"breaking"},
    )


@pytest.fixture
def synapse_url(synapse):
    with served(synapse) as address:
        yield f"http://{address}"


@pytest.fixture
def router(tmp_path, synapse_url):
    with Router(tmp_path, synapse_url) as router:
        yield router


@pytest.fixture
def closed():
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def token_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "token"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write
