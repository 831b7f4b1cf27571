import pytest

from tests.unit.deploy.bundle.builders import Workshop, make_key


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """
    A private key, and the allowed signers file that lists it.
    """
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """
    A key that no allowed signers file lists.
    """
    return make_key(tmp_path_factory.mktemp("stranger"), "eve@example.org")
