from types import SimpleNamespace

import pytest

from deploy.errors import DeployError, PreconditionError, TransportError
from deploy.wiring.hosts import Hosts
from tests.local_fleet import local_fleet


@pytest.fixture
def fleet():
    with local_fleet("n1", "n2", "n3") as hosts:
        yield hosts


def observe(fleet):
    selected = SimpleNamespace(hosts=[SimpleNamespace(name=name) for name in fleet.clients])
    return Hosts(fleet=selected, clients=fleet.clients, transports={}).observed()


def test_hosts_that_answer_are_observed(fleet):
    assert set(observe(fleet)) == {"n1", "n2", "n3"}


def test_one_unreachable_host_has_its_own_error(fleet):
    fleet["n2"].is_cut = True

    with pytest.raises(TransportError) as caught:
        observe(fleet)

    assert caught.value.host == "n2"


def test_several_unreachable_hosts_are_named_together(fleet):
    """
    The remedy names the hosts that answer.
    """
    fleet["n1"].is_cut = fleet["n3"].is_cut = True

    with pytest.raises(TransportError, match="n1, n3: cannot be read") as caught:
        observe(fleet)

    assert "--limit n2" in caught.value.fix


def test_hosts_of_an_older_release_name_their_own_remedy(fleet, monkeypatch):
    """
    Several hosts with an older host program: the remedy is `inv provision`, not to leave them out.
    """
    monkeypatch.setattr("tests.local_host.handle", older_host_program)

    with pytest.raises(PreconditionError) as caught:
        observe(fleet)

    assert caught.value.fix == "inv provision installs the host program of this release"
    assert "another release of slipway" in caught.value.why


def test_errors_of_several_kinds_are_one_transport_error(fleet, monkeypatch):
    monkeypatch.setattr("tests.local_host.handle", older_host_program)
    fleet["n1"].is_cut = True

    with pytest.raises(DeployError) as caught:
        observe(fleet)

    assert type(caught.value) is TransportError


def older_host_program(system, verb, text):
    """
    Answer as the host program without a schema number does.
    """
    return (
        '{"ok": false, "error": {"kind": "UsageError", "what": "status: the document can\'t be '
        'read", "why": "unknown key schema", "fix": "send another"}}'
    )
