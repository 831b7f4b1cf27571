"""
The lease of a host without Python: real commands on this machine, under a root of the test.
"""

import json
import os
import subprocess

import pytest

from deploy.errors import CommandFailed, LeaseHeld, LeaseLost, PreconditionError
from deploy.host import layout
from deploy.host.layout import Layout
from deploy.host.lease import Leases
from deploy.host.protocol import LeaseAcquire, LeaseRelease, LeaseRenew, Status
from deploy.host.system import System
from deploy.provision.bare_lease import BareClient, swap_command
from deploy.transport.base import Completed

PATH = "/usr/bin:/bin"


class Shell:
    """
    A host of which nothing but its shell runs.

    Attributes:
        between: Called before each command, with its number.
    """

    host = "n1"

    def __init__(self, root):
        self.root, self.count, self.between = root, 0, lambda number: None

    def run(self, argv, *, timeout_s, stdin=None, check=True, output_max=2**20):
        self.count += 1
        self.between(self.count)
        script = argv[-1].replace(layout.STATE, f"{self.root}{layout.STATE}")
        done = subprocess.run(
            ["/bin/sh", "-c", f"echo Welcome; {script}"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={"PATH": PATH},
        )
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr, 0.1)


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def leases(tmp_path):
    """
    What the host program reads, once the host has Python.
    """
    system = System(Layout(str(tmp_path)))
    boot_id = tmp_path / layout.BOOT_ID.lstrip("/")
    boot_id.parent.mkdir(parents=True)
    boot_id.write_bytes(System().layout.boot_id.read_bytes())
    return Leases(system)


def client(shell, owner="ann@desk:1"):
    made = BareClient(shell, sudo=False)
    made.release = "provision"
    made.owner = owner
    return made


def take(one, **more):
    one.fence = one.call(LeaseAcquire(one.owner, 30.0, needs_settled=True, **more)).fence
    return one.fence


def test_the_second_operator_is_told_who_and_until_when(shell):
    """
    Before a single package was asked for; after the end of the first one it is its turn.
    """
    ann, bob = client(shell), client(shell, "bob@desk:2")
    first = take(ann)
    with pytest.raises(LeaseHeld) as caught:
        take(bob)
    assert "ann@desk:1 holds it for provision; it ends in " in caught.value.why
    assert " s unless it is renewed" in caught.value.why
    assert ann.call(LeaseRelease()).released
    assert take(bob) == first + 1
    assert not ann.call(LeaseRelease()).released
    with pytest.raises(LeaseLost):
        ann.call(LeaseRenew(30.0))


def test_the_host_program_goes_on_with_it(shell, leases):
    """
    Both read one file, with one clock: the lease that the shell took holds for the program too.
    """
    ann = client(shell, 'ann "\\ü@desk:1')
    fence = take(ann)
    assert 25 < leases.status().left_s <= 30
    assert (leases.status().owner, leases.check(fence).release) == (ann.owner, "provision")
    leases.renew(leases.check(fence), 60.0)
    ann.call(LeaseRenew(90.0))
    assert 80 < leases.status().left_s <= 90
    leases.release(fence)
    assert take(client(shell, "bob")) == fence + 1


def test_of_two_at_once_one_gets_it(shell):
    """
    The other one comes between reading and writing.
    """
    ann, bob = client(shell), client(shell, "bob")

    def between(number):
        if number == 2:
            take(bob)

    shell.between = between
    with pytest.raises(LeaseHeld, match="n1"):
        take(ann)
    assert json.loads((shell.root / layout.LEASE.lstrip("/")).read_text())["owner"] == "bob"


@pytest.mark.parametrize(("mounted", "status"), [("", 0), ("mv {0} {0}.hidden; touch {0};", 75)])
def test_a_disk_that_is_mounted_meanwhile_has_another_lock(tmp_path, mounted, status):
    """
    The file is read again then, and nothing is written.
    """
    state = tmp_path / layout.STATE.lstrip("/")
    script = swap_command("", "{}").replace(layout.STATE, str(state))
    script = script.replace("flock", f"{mounted.format(state / 'lock')} flock")
    assert subprocess.run(["sh", "-c", script], check=False).returncode == status
    assert (state / "lease.json").exists() == (status == 0)


def test_a_file_that_never_rests_is_an_error(shell):
    """
    Not a loop without end.
    """
    lease = shell.root / layout.LEASE.lstrip("/")
    lease.parent.mkdir(parents=True)
    shell.between = lambda number: lease.write_text(f"garbage {number}")
    with pytest.raises(CommandFailed, match="lease file"):
        take(client(shell))


def test_a_host_that_lost_its_python_and_its_lease_file_is_refused(shell):
    """
    The number of the last lease is not known.
    """
    path = Layout(str(shell.root)).journal
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(PreconditionError, match="lease cannot be taken") as caught:
        take(client(shell))
    assert "apt-get install python3" in caught.value.fix
    path.unlink()
    assert take(client(shell)) == 1


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_the_lease_is_replaced(shell, leases):
    """
    cat would wait for a writer until the deadline of the call.
    """
    path = shell.root / layout.LEASE.lstrip("/")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert take(client(shell)) == 1
    assert leases.last_fence() == 1


def test_a_change_that_nothing_can_take_back_is_no_reason_to_refuse(shell, leases):
    """
    Provisioning installs the Python with which the host goes back.
    """
    first = take(client(shell))
    leases.release(first)
    path = Layout(str(shell.root)).pending
    path.write_text("{}")
    assert take(client(shell)) == first + 1


def test_no_other_verb_runs_there(shell):
    with pytest.raises(TypeError):
        client(shell).call(Status())
    assert list(shell.root.glob("var/lib/*")) == []
