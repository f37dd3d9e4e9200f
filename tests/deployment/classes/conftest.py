import pytest

from tests.deployment.disclosure import disclosed
from tests.stack.deployment import deployed

# Beyond what every deployment here has: clients register by themselves or come from a single
# sign-on, and show whether they are there; and Synapse has metrics, which are not for them.
SETTINGS = {
    "public_baseurl": "http://example.org/",
    "cas_config": {"enabled": True, "server_url": "https://cas.example.org/"},
    "enable_metrics": True,
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "presence": {"enabled": True},
}


@pytest.fixture(scope="package")
def deployment(tmp_path_factory):
    """A deployment with a worker for each class, for these tests alone.

    Twenty more workers, and presence, would slow down what others measure.
    """
    with deployed(every_class=True, settings=SETTINGS) as running:
        yield running
        assert disclosed([running.directory, tmp_path_factory.getbasetemp()]) == {}
