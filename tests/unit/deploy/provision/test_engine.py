"""
The worker's loop for one host, with prepared facts and recorded operations.
"""

from types import SimpleNamespace

import pytest

from deploy.inventory.schema import Host, Ssh
from deploy.provision import engine
from deploy.provision.worker_request import HostRequest
from tests.unit.deploy.provision.builders import bare, make_facts, make_resources

HOST = Host(name="n1", address="192.0.2.1", groups=(), row="", ssh=Ssh(), vars={})
RESOURCES = make_resources(row="torch-2.3-cu121", device="cuda")
DRIVER = "535.104.05"


class Touched(Exception):
    """
    An operation was about to change the host.
    """


def run(monkeypatch, facts, *, changes, later=()):
    """
    Run one host with the initial *facts*, and *later* ones after each round of changes.

    Args:
        changes: Called with each resource that is to be changed.
    """
    answers = iter([facts, *later])
    monkeypatch.setattr(engine.operations, "apply", lambda resource, *_: changes(resource))
    monkeypatch.setattr(engine, "read_facts", lambda *_, **__: next(answers))
    connector = SimpleNamespace(doing="", said="", lost=None, target=HOST)
    events = []
    request = HostRequest.of(HOST, RESOURCES)
    engine.HostRun(connector, request, b"program", events.append).run()
    return [event.kind.value for event in events]


def touch(resource):
    raise Touched(resource.name)


@pytest.mark.parametrize("driver", [None, "530.30.02"])
def test_a_host_with_too_old_a_driver_is_not_changed(monkeypatch, driver):
    """
    It fails before the first operation if the row does not allow its driver.
    """
    with pytest.raises(engine.HostFailed) as caught:
        run(monkeypatch, bare(RESOURCES, driver=driver), changes=touch)
    assert caught.value.error == "PreconditionError"
    assert "torch-2.3-cu121 needs 535 or later" in caught.value.why


def test_a_host_with_the_driver_would_be_changed(monkeypatch):
    """
    Negative control: the same host with the row's driver is changed.
    """
    with pytest.raises(Touched):
        run(monkeypatch, bare(RESOURCES, driver=DRIVER), changes=touch)


def test_a_host_is_done_when_its_facts_agree(monkeypatch):
    """
    After the changes its facts are read again, and remaining differences take another round.
    """
    changed = []
    good = make_facts(RESOURCES, driver=DRIVER)
    kinds = run(
        monkeypatch,
        bare(RESOURCES, driver=DRIVER),
        changes=lambda resource: changed.append(resource.name),
        later=[good],
    )
    assert len(changed) == len({*changed}) > 10
    assert kinds.count("changed") == len(changed)
    assert kinds[-1] == "looking"


def test_a_host_without_python_gets_its_packages_first(monkeypatch):
    """
    Without facts only packages are changed; later facts decide the rest.
    """
    changed = []

    def change(resource):
        changed.append(resource.name)

    good = make_facts(RESOURCES, driver=DRIVER)
    run(monkeypatch, None, changes=change, later=[good])
    assert changed[-1] == "packages"


def test_a_host_that_never_agrees_fails_with_its_differences(monkeypatch):
    """
    After five rounds, if each change is undone.
    """
    facts = bare(RESOURCES, driver=DRIVER)
    with pytest.raises(engine.HostFailed, match="n1") as caught:
        run(monkeypatch, facts, changes=lambda _: None, later=[facts] * 5)
    assert "5 rounds" in caught.value.why
    assert "packages" in caught.value.why
