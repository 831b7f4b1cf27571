"""
A complete run against an SSH server on this machine, with resources that a test chooses.
"""

import getpass
import grp
import os
import socket
import subprocess
import sys

import pytest

from deploy.errors import CommandFailed
from deploy.inventory.schema import Fleet, Mirrors
from deploy.provision import EventKind, fleet_specs, run, supervise
from deploy.provision.requirements import PortFree
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import File, Venv, WheelFile
from tests.unit.deploy.transport.loopback import LoopbackSshd

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="files of a test belong to root")

OWNER, GROUP = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def sshd(tmp_path):
    with LoopbackSshd(tmp_path) as server:
        yield server


@pytest.fixture
def provision(monkeypatch, host_root):
    """
    Return a function that provisions hosts with files; it returns the report and the events.
    """

    def provision_hosts(hosts, files, *, check=False, requirements=(), deadline_s=60.0):
        wanted = ResourceSet(requirements=requirements, placed=tuple(files), running=())
        names = [host.name for host in hosts]
        monkeypatch.setattr(
            fleet_specs, "resource_sets", lambda *_, **__: dict.fromkeys(names, wanted)
        )
        monkeypatch.setattr(run, "check_inputs", lambda fleet, env: None)
        fleet = Fleet.model_construct(name="lab", hosts=tuple(hosts), mirrors=Mirrors())
        events = []
        report = run.provision(
            fleet, check=check, progress=events.append, env={}, deadline_s=deadline_s
        )
        return report, events

    return provision_hosts


def make_file(path, content=b"wanted\n"):
    return File(path=str(path), content=content, owner=OWNER, group=GROUP, mode="0600")


def kinds(events, host="n1"):
    return [event.kind for event in events if event.host == host]


def test_an_unchanged_host_costs_one_command_and_no_worker(sshd, provision, tmp_path, monkeypatch):
    """
    No process is started, and nothing else is sent to the host.
    """
    path = tmp_path / "file"
    path.write_bytes(b"wanted\n")
    path.chmod(0o600)
    monkeypatch.delattr(supervise, "start_worker")
    hosts = [sshd.host("n1"), sshd.host("n2")]
    report, events = provision(hosts, [make_file(path)])
    assert (report.ok, report.changes, report.failed) == (("n1", "n2"), (), ())
    assert report.commands == {"n1": 1, "n2": 1}
    assert len(sshd.commands) == sshd.logins == 2
    assert kinds(events) == [EventKind.CONNECTING, EventKind.LOOKING, EventKind.OK]


def test_a_check_shows_the_difference_and_changes_nothing(sshd, provision, tmp_path, monkeypatch):
    """
    `--check` takes one command per host, for any difference.
    """
    path = tmp_path / "file"
    path.write_bytes(b"old\n")
    monkeypatch.delattr(supervise, "start_worker")
    report, _ = provision([sshd.host()], [make_file(path)], check=True)
    [change] = report.changes
    assert (change.host, change.resource) == ("n1", str(path))
    assert "-old" in change.diff
    assert "+wanted" in change.diff
    assert (report.ok, report.commands) == (("n1",), {"n1": 1})
    assert path.read_bytes() == b"old\n"


def test_a_host_that_differs_is_changed_and_read_again(sshd, provision, tmp_path):
    """
    The worker places the file; the host is OK only after its facts are read again.
    """
    path = tmp_path / "file"
    report, events = provision([sshd.host()], [make_file(path)])
    assert (report.ok, report.failed) == (("n1",), ())
    assert [change.resource for change in report.changes] == [str(path)]
    assert path.read_bytes() == b"wanted\n"
    assert kinds(events)[-4:] == [
        *(EventKind.CHANGING, EventKind.CHANGED, EventKind.LOOKING, EventKind.OK)
    ]
    assert report.commands == {"n1": len(sshd.commands)}


def test_a_refused_host_is_not_changed(sshd, provision, tmp_path, monkeypatch):
    """
    A host that does not meet a requirement gets only the one command.
    """
    monkeypatch.delattr(supervise, "start_worker")
    occupied = (PortFree(port=sshd.port),)
    path = tmp_path / "file"
    report, _ = provision([sshd.host()], [make_file(path)], requirements=occupied)
    [failure] = report.failed
    assert failure.error == "PortInUse"
    assert str(sshd.port) in failure.why
    assert report.error.exit_code == 17
    assert (report.changes, path.exists(), len(sshd.commands)) == ((), False, 1)


def test_a_host_is_judged_by_what_it_is_when_its_changes_begin(
    sshd, provision, tmp_path, monkeypatch
):
    """
    What happens on a host while the others are read counts: here a program takes the public port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start_worker, listeners = supervise.start_worker, []

    def start_later():
        listeners.append(socket.create_server(("127.0.0.1", port)))
        return start_worker()

    monkeypatch.setattr(supervise, "start_worker", start_later)
    path = tmp_path / "file"
    try:
        report, _ = provision([sshd.host()], [make_file(path)], requirements=(PortFree(port=port),))
    finally:
        listeners[0].close()
    [failure] = report.failed
    assert failure.error == "PortInUse"
    assert not path.exists()


def test_a_host_that_cannot_be_reached_does_not_stop_the_others(sshd, provision, tmp_path):
    """
    The host that refuses the connection fails by name; the other is provisioned.
    """
    hosts = [sshd.host("n1", port=1), sshd.host("n2")]
    report, _ = provision(hosts, [make_file(tmp_path / "file")])
    assert report.ok == ("n2",)
    assert [(f.host, f.error) for f in report.failed] == [("n1", "TransportError")]
    assert report.error.exit_code == 5


def test_a_host_that_does_not_answer_fails_at_the_deadline(sshd, provision, tmp_path, monkeypatch):
    """
    The run's deadline also applies if a single command has a longer timeout.
    """
    monkeypatch.setattr("deploy.provision.probe.PROBE_COMMAND", "sleep 60")
    report, _ = provision([sshd.host()], [make_file(tmp_path / "file")], deadline_s=0.5)
    [failure] = report.failed
    assert (failure.host, failure.error) == ("n1", "TransportError")
    assert failure.why == "the run's deadline passed, at: looking"


@pytest.fixture
def environment(monkeypatch):
    """
    Provision with a Python environment whose wheels this machine lacks; count what is fetched.
    """
    fetched = []

    def fetch(row, *, interpreter, progress):
        assert interpreter is None
        fetched.append(row.name)
        raise CommandFailed("no index", why="no index", fix="none")

    monkeypatch.setattr(fleet_specs, "ensure_lock", fetch)
    monkeypatch.setattr(fleet_specs, "ensure_uv", lambda uv: None)
    return fetched, Venv(digest="0" * 64, text="a==1 --hash=x\n", python="3.11", wheels=None)


def test_a_check_fetches_no_wheels(sshd, provision, environment):
    """
    It says that they would be fetched.
    """
    fetched, venv = environment
    report, _ = provision([sshd.host()], [venv], check=True)
    assert fetched == []
    assert [c.change for c in report.changes] == [
        "fetch the wheels of 1 packages, send and build them"
    ]


def test_wheels_are_fetched_once_a_host_needs_them(sshd, provision, environment, tmp_path):
    """
    A host that is asked and needs other changes needs none.
    """
    fetched, venv = environment
    report, _ = provision([sshd.host()], [make_file(tmp_path / "file")])
    assert (report.ok, fetched) == (("n1",), []), report.failed
    with pytest.raises(CommandFailed):
        provision([sshd.host()], [venv])
    assert fetched == ["torch-2.13-cpu"]
    assert len(sshd.commands) > 1


def test_a_host_without_room_for_what_was_fetched_gets_no_lease(
    sshd, provision, environment, monkeypatch, host_root
):
    """
    How much room it takes is known once the wheels are here; the lease left /var/lib/slipway.
    """
    _, venv = environment
    huge = WheelFile(file="a.whl", sha256="0" * 64, size=1, source="/a.whl", unpacked=1 << 60)
    monkeypatch.setattr(fleet_specs._Fetches, "wheels", lambda self, row: (huge,))
    monkeypatch.delattr(supervise, "start_worker")

    report, _ = provision([sshd.host()], [venv])

    [failure] = report.failed
    assert failure.error == "DiskTooSmall"
    assert (len(sshd.commands), list(host_root.rglob("lease.json"))) == (1, [])


def test_an_error_of_the_fleet_ends_the_run(sshd, monkeypatch):
    """
    If the specification cannot be built, the error is raised and the hosts get no command.
    """

    def fail(*_, **__):
        raise LookupError("no secret")

    monkeypatch.setattr(fleet_specs, "resource_sets", fail)
    monkeypatch.setattr(run, "check_inputs", lambda fleet, env: None)
    fleet = Fleet.model_construct(name="lab", hosts=(sshd.host(),))
    with pytest.raises(LookupError):
        run.provision(fleet, progress=lambda _: None, env={})
    assert sshd.commands == []


FORBIDDEN = {"gevent", "pyinfra", "torch", "pandas", "numpy", "transformers", "asyncssh"}


@pytest.mark.parametrize("module", ["deploy.provision.run", "deploy.provision.fleet_specs"])
def test_an_unchanged_fleet_needs_no_pyinfra(module):
    """
    Comparing hosts imports no slow package.
    """
    script = f"import {module}, sys; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert module in shown.split()
    assert FORBIDDEN.isdisjoint(shown.split())
