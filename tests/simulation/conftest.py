import pytest


def pytest_addoption(parser):
    parser.addoption("--case", help="SCENARIO:FAULTS of one run of the simulation")


@pytest.fixture
def case(request):
    """
    The case to run again, as a failure prints it.
    """
    return request.config.getoption("--case") or "release:"
