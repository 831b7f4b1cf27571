import pytest

from tests.unit.deploy.transport.loopback import LoopbackSshd


@pytest.fixture
def sshd(tmp_path):
    with LoopbackSshd(tmp_path) as server:
        yield server
