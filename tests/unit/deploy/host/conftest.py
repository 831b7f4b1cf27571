from pathlib import Path

import pytest

from tests.unit.deploy.bundle.builders import Workshop, make_key
from tests.unit.deploy.host.fakes import SocketRuntime, TemporaryHost, short_directory
from tests.unit.deploy.host.haproxy_process import PROGRAM, HaproxyProcess
from tests.unit.deploy.host.staged import provision


@pytest.fixture
def host():
    with short_directory() as root:
        yield TemporaryHost(root)


@pytest.fixture
def leased(host):
    host.lease()
    return host


@pytest.fixture
def runtimes(host):
    """
    A runtime behind the socket of each slot.
    """
    host.system.use_real("http")
    by_slot = {
        slot: SocketRuntime(host.layout.runtime_socket(slot), slot) for slot in ("blue", "green")
    }
    yield by_slot
    for runtime in by_slot.values():
        runtime.close()


@pytest.fixture
def proxy(leased, runtimes):
    """
    A real HAProxy in front of *runtimes*; both slots are in maint, as after provisioning.
    """
    if not Path(PROGRAM).exists():
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    leased.system.use_real("haproxy", "wall_s", "steady_s", "sleep")
    leased.lease()
    haproxy = HaproxyProcess(leased)
    yield haproxy
    haproxy.stop()


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """
    A private key, and the allowed signers file that lists it.
    """
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture
def bundle(workshop, keys):
    return workshop.signed(keys[0])


@pytest.fixture
def provisioned(host, keys):
    """
    A host that accepts signed bundles: uv, allowed signers, a lease.
    """
    provision(host, keys)
    return host
