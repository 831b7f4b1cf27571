import pytest

from tests.unit.runtime.serving import Runtime


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def runtime():
    """
    A ready runtime, whose engine is asked for just what was announced, and holds nothing after.
    """
    runtime = Runtime()
    yield runtime
    runtime.engine.done()
    assert runtime.engine.running == {}
