"""
One operator at a time: complete runs against an SSH server on this machine.
"""

import json
import os
import signal

import pytest

from deploy.errors import UsageError
from deploy.host.layout import Layout
from deploy.inventory.schema import Fleet
from deploy.provision import EventKind, fleet_specs, run, supervise
from deploy.provision.resource_set import ResourceSet
from tests.unit.deploy.provision.test_run import make_file
from tests.unit.deploy.transport.loopback import LoopbackSshd

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="files of a test belong to root")


class Operator:
    """
    Provisions one file on this machine.
    """

    def __init__(self, sshd, monkeypatch, file):
        self.sshd = sshd
        wanted = ResourceSet(requirements=(), placed=(file,), running=())
        monkeypatch.setattr(fleet_specs, "resource_sets", lambda *_, **__: {"n1": wanted})
        monkeypatch.setattr(run, "check_inputs", lambda fleet, env: None)

    def provision(self, when=lambda event: None, **options):
        fleet = Fleet.model_construct(name="lab", hosts=(self.sshd.host(),))
        return run.provision(fleet, progress=when, env={}, **options)


@pytest.fixture
def operator(tmp_path, monkeypatch, host_root):
    """
    Return a function that makes an operator who places the file at `tmp_path / "file"`.
    """
    with LoopbackSshd(tmp_path) as sshd:

        def make(check=None):
            file = make_file(tmp_path / "file").model_copy(update={"check": check})
            return Operator(sshd, monkeypatch, file)

        yield make


def lease_of(host_root):
    path = Layout(str(host_root)).lease
    return json.loads(path.read_text()) if path.exists() else None


def once(kind, then):
    """
    Return a progress callback that calls *then* at the first event of *kind*.
    """
    left = [then]

    def when(event):
        if event.kind is kind and left:
            left.pop()()

    return when


def test_a_second_run_is_told_who_and_until_when(operator, host_root, tmp_path):
    """
    It touches nothing, and the first one goes on; at its end the lease is given back.
    """
    go = tmp_path / "go"
    first, second = operator(check=f"until [ -e {go} ]; do sleep 0.1; done"), []

    def run_second():
        second.append(first.provision())
        go.touch()

    report = first.provision(once(EventKind.CHANGING, run_second))
    [failure] = second[0].failed
    assert (failure.error, second[0].error.exit_code) == ("LeaseHeld", 6)
    assert "holds the lease" in failure.why
    assert "for provision" in failure.why
    assert " s unless it is renewed" in failure.why
    assert second[0].changes == ()
    assert (report.ok, report.failed) == (("n1",), ())
    assert (lease_of(host_root)["owner"], lease_of(host_root)["fence"]) == (None, 1)
    assert report.commands["n1"] + second[0].commands["n1"] == len(first.sshd.commands)


def test_only_a_lease_needs_a_name(operator, host_root, tmp_path, monkeypatch):
    """
    A look takes none, so a user without a passwd entry may check; a change is refused untouched.
    """

    def no_name():
        raise UsageError("no name", why="no passwd entry", fix="export LOGNAME=NAME")

    monkeypatch.setattr(run, "owner", no_name)
    assert operator().provision(check=True).changes
    with pytest.raises(UsageError, match="no name"):
        operator().provision()
    assert not (tmp_path / "file").exists()
    assert lease_of(host_root) is None


def test_a_look_takes_no_lease(operator, host_root, tmp_path, monkeypatch):
    """
    Neither does a check that finds a difference.
    """
    monkeypatch.delattr(supervise, "start_worker")
    report = operator().provision(check=True)
    assert report.changes, report.failed
    assert lease_of(host_root) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_gives_its_lease_back(operator, host_root, tmp_path, number):
    """
    A change that has begun ends first; the signals mean what they meant before.
    """
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        operator(check="sleep 1").provision(
            once(EventKind.CHANGING, lambda: os.kill(os.getpid(), number))
        )
    assert lease_of(host_root)["owner"] is None
    assert (tmp_path / "file").read_bytes() == b"wanted\n"
    assert signal.getsignal(number) is before


def test_a_run_that_lost_its_lease_changes_nothing_more(operator, host_root, tmp_path):
    """
    The command in progress fails, and the host is reported with the reason.
    """

    def steal():
        path = Layout(str(host_root)).lease
        path.write_text(json.dumps(lease_of(host_root) | {"fence": 9, "owner": "bob@desk:2"}))

    when = once(EventKind.CHANGING, steal)
    report = operator(check="sleep 60").provision(when, lease_s=10.0)
    [failure] = report.failed
    assert failure.error == "LeaseLost", failure
    assert "its renewal failed" in failure.why
    assert not (tmp_path / "file").exists()
    assert lease_of(host_root)["owner"] == "bob@desk:2"
