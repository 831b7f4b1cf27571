"""
The order in which one host is visited, with a look that is given and operations that are counted.
"""

from types import SimpleNamespace

import pytest

from deploy.inventory.schema import Host, Ssh
from deploy.provision import engine
from deploy.provision.worker_request import HostRequest
from tests.unit.deploy.provision.builders import bare, make_resources

HOST = Host(name="n1", address="192.0.2.1", groups=(), row="", ssh=Ssh(), vars={})
RESOURCES = make_resources(row="torch-2.3-cu121", device="cuda")


class Touched(Exception):
    """
    An operation was about to change the host.
    """


def visit(monkeypatch, facts, said):
    """
    Visit a host that looks like *facts*; the first operation ends it.
    """

    def touch(resource, facts):
        raise Touched(resource.name)

    monkeypatch.setattr(engine.operations, "apply", touch)
    connector = SimpleNamespace(doing="", said="", lost=None)
    host = SimpleNamespace(get_fact=lambda *args, **kwargs: facts)
    engine.HostRun(host, connector, HostRequest.of(HOST, RESOURCES), said.append).make_so(
        check=False
    )


@pytest.mark.parametrize("driver", [None, "530.30.02"])
def test_a_host_with_too_old_a_driver_is_refused_before_it_is_touched(monkeypatch, driver):
    """
    Nothing is sent to a host whose driver the row does not allow but the query what it is like.
    """
    said = []
    with pytest.raises(engine.Refused) as caught:
        visit(monkeypatch, bare(RESOURCES, driver=driver), said)
    assert caught.value.error == "PreconditionError"
    assert "torch-2.3-cu121 needs 535 or later" in caught.value.why
    assert {event.kind.value for event in said} == {"looking"}


def test_a_host_with_the_driver_would_be_touched(monkeypatch):
    """
    Negative control: the same host with the driver that the row asks for is changed.
    """
    with pytest.raises(Touched):
        visit(monkeypatch, bare(RESOURCES, driver="535.104.05"), [])
