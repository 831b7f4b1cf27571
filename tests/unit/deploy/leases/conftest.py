import pytest

from tests.local_fleet import local_fleet
from tests.unit.deploy.release.conftest import NAMES


@pytest.fixture
def fleet():
    """
    Three hosts that serve.
    """
    with local_fleet(*NAMES) as hosts:
        yield hosts
