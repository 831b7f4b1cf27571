import pytest

from tests.local_fleet import local_fleet

NAMES = ("n1", "n2", "n3")


@pytest.fixture
def fleet():
    """
    Three hosts that serve b1 (v1) from blue.
    """
    with local_fleet(*NAMES) as hosts:
        yield hosts


@pytest.fixture
def bare_fleet():
    """
    Three hosts without any release.
    """
    with local_fleet(*NAMES, serving=None) as hosts:
        yield hosts
