"""
The worker's loop for one host, with prepared facts and recorded operations.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploy.host import layout
from deploy.host.protocol import LeaseStatus, Pending
from deploy.inventory.schema import Host, Ssh
from deploy.provision import engine
from deploy.provision.orders import Orders
from deploy.provision.worker_request import HostRequest, WorkerRequest
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
    request = HostRequest.of(HOST, RESOURCES, fence=7)
    worker_request = WorkerRequest(packed_program=b"program", hosts=(request,))
    engine.HostRun(connector, request, worker_request, events.append, Orders()).run()
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


def test_the_own_lease_refuses_no_host(monkeypatch):
    """
    That of another run does, also where it was taken after ours.
    """
    own, other = (LeaseStatus("ann", "provision", fence=number, left_s=9.0) for number in (7, 8))
    with pytest.raises(Touched):
        run(monkeypatch, bare(RESOURCES, driver=DRIVER, lease=own), changes=touch)
    with pytest.raises(engine.HostFailed) as caught:
        run(monkeypatch, bare(RESOURCES, driver=DRIVER, lease=other), changes=touch)
    assert caught.value.error == "LeaseHeld"


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


def test_a_host_that_never_agrees_fails_with_its_difference(monkeypatch):
    """
    Once a change had no effect twice; no other program is blamed.
    """
    facts = bare(RESOURCES, driver=DRIVER)
    with pytest.raises(engine.HostFailed, match="n1") as caught:
        run(monkeypatch, facts, changes=lambda _: None, later=[facts] * 2)
    assert "changed twice without effect" in caught.value.why
    assert "configuration tool" not in caught.value.fix


def test_a_host_that_is_changed_back_twice_fails_with_its_cause(monkeypatch):
    good = make_facts(RESOURCES, driver=DRIVER)
    [path] = [r.path for r in RESOURCES.placed if r.name == layout.ETC]
    stopped = good.units | {
        layout.HAPROXY_UNIT: replace(good.units[layout.HAPROXY_UNIT], active="inactive")
    }
    reverted = replace(
        good,
        paths=good.paths | {path: replace(good.paths[path], mode="0777")},
        units=stopped,
    )
    fixed = replace(good, units=stopped)
    later = [fixed, reverted, fixed, reverted]
    with pytest.raises(engine.HostFailed, match="n1") as caught:
        run(monkeypatch, reverted, changes=lambda _: None, later=later)
    assert "mode 0777 → 0750: right after its change and different again, twice" in caught.value.why
    assert "configuration tool" in caught.value.fix


@pytest.mark.parametrize("driver", [None, DRIVER])
def test_a_host_that_lost_its_driver_meanwhile_is_not_ok(monkeypatch, driver):
    """
    Requirements are checked again after the last change.
    """
    ended = make_facts(RESOURCES, driver=driver)
    later = [ended]
    if driver is None:
        with pytest.raises(engine.HostFailed) as caught:
            run(monkeypatch, bare(RESOURCES, driver=DRIVER), changes=lambda _: None, later=later)
        assert "no NVIDIA driver is loaded" in caught.value.why
    else:
        run(monkeypatch, bare(RESOURCES, driver=DRIVER), changes=lambda _: None, later=later)


def test_a_python_that_is_gone_is_installed_again(monkeypatch):
    """
    apt says that its package is there.
    """
    again = []
    monkeypatch.setattr(engine.AptRunner, "change", lambda self, change: again.append(change.again))
    good = make_facts(RESOURCES, driver=DRIVER)
    run(monkeypatch, None, changes=lambda _: None, later=[None, good])
    assert again == [("python3-minimal", "python3.*-minimal")]
    with pytest.raises(engine.HostFailed) as caught:
        run(monkeypatch, None, changes=lambda _: None, later=[None, None])
    assert layout.PYTHON in caught.value.why


def test_an_unconfirmed_change_is_taken_back_once_the_host_has_python_again(monkeypatch):
    """
    The run ends there: its lease would keep the host from going back.
    """
    pending = Pending("r41", 7, "green", "blue", 0.0, is_stuck=False)
    later = [replace(bare(RESOURCES, driver=DRIVER), pending=pending)]
    with pytest.raises(engine.HostFailed) as caught:
        run(monkeypatch, None, changes=lambda _: None, later=later)
    assert "release r41 is not confirmed on the host: it is going back to blue" in caught.value.why
    assert "then: inv provision" in caught.value.fix


def test_a_deep_run_looks_deep_after_its_changes_too(monkeypatch):
    """
    What only a deep look finds would be OK by another one.
    """
    queries = []
    good = make_facts(RESOURCES, driver=DRIVER)

    def look(*_, query, **__):
        queries.append(query.deep)
        return good

    monkeypatch.setattr(engine, "read_facts", look)
    connector = SimpleNamespace(doing="", said="", lost=None, target=HOST)
    request = HostRequest.of(HOST, RESOURCES, fence=7)
    for deep in (True, False):
        worker_request = WorkerRequest(packed_program=b"", deep=deep, hosts=(request,))
        engine.HostRun(connector, request, worker_request, lambda _: None, Orders()).run()
    assert queries == [True, False]
