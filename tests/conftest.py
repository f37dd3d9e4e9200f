import pytest
from hypothesis import settings

# A shared machine may take its time over an example.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture
def anyio_backend():
    """Tests that are coroutines run on asyncio, as the service does."""
    return "asyncio"
