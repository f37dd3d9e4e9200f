import pytest


@pytest.fixture
def anyio_backend():
    """Tests that are coroutines run on asyncio, as the service does."""
    return "asyncio"
