"""
The command of the unit that takes a slot's socket to where the slot cannot change it.

It runs as root below directories that only root may change; the slot may put anything into `run`.
"""

import getpass
import os
import re
import socket
import stat
import subprocess

import pytest

from deploy.host import layout
from deploy.provision import runtime_unit
from tests.unit.deploy.host.fakes import short_directory
from tests.unit.deploy.provision.builders import make_spec

USER = getpass.getuser()


def command(key, root):
    """
    Return the shell command of *key* for slot blue, with its paths below *root*.
    """
    text = runtime_unit.unit(make_spec()).replace("\\\n", " ")
    line = re.search(rf"^{key}=\+(.*)$", text, re.MULTILINE)[1]
    line = line.replace("%%", "\0").replace("%i", "blue").replace("\0", "%").replace("$$", "$")
    line = line.replace(f"{layout.HAPROXY_USER}:", f"{USER}:")
    line = line.replace(layout.slot_user("blue"), USER)
    return line.replace("/run/slipway", f"{root}/run")


def run(key, root):
    return subprocess.run(["sh", "-c", command(key, root)], capture_output=True, check=False)


@pytest.fixture
def root():
    """
    The directories as systemd, tmpfiles.d and ExecStartPre make them.
    """
    with short_directory() as path:
        (path / "run" / "blue").mkdir(parents=True)
        (path / "run" / "private" / "blue" / "run").mkdir(parents=True)
        yield path


@pytest.fixture
def private(root):
    return root / "run" / "private" / "blue"


@pytest.fixture
def public(root):
    return root / "run" / "blue" / "runtime.sock"


@pytest.fixture
def bound(private):
    """
    The runtime listens on its socket.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(private / "run" / "runtime.sock"))
        listener.listen()
        yield listener


def test_a_socket_moves_out_of_the_slots_hands(root, private, public, bound):
    """
    It is reached at the path of HAProxy, is for its owner alone, and the slot's directory is empty.
    """
    assert run("ExecStartPost", root).returncode == 0

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(public))
    assert stat.S_IMODE(public.stat().st_mode) == 0o600
    assert list((private / "run").iterdir()) == []


def test_it_may_run_again(root, private, public, bound):
    """
    After a restart there is an older socket at its place.
    """
    assert run("ExecStartPost", root).returncode == 0
    with socket.socket(socket.AF_UNIX) as again:
        again.bind(str(private / "run" / "runtime.sock"))
        again.listen()

        assert run("ExecStartPost", root).returncode == 0

        bound.close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(public))


def plant(kind, path, outside):
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to(path.parent / "nothing")
    elif kind == "file":
        path.write_text("x")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        (path / "deep" / "er").mkdir(parents=True)
    elif kind == "foreign":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        os.chown(path, 65534, -1)


KINDS = ["link", "dangling", "file", "fifo", "directory", "foreign", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_anything_else_ends_the_start(root, private, public, kind):
    """
    A link to another socket, a file, another user's socket: nothing leads there afterwards.
    """
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root may give a socket away")
    outside = root / "haproxy.sock"
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(outside))
        outside.chmod(0o640)
        plant(kind, private / "run" / "runtime.sock", outside)

        assert run("ExecStartPost", root).returncode != 0

    assert not public.is_symlink()
    assert not (private / "runtime.sock").exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_does_not_end_the_next_start(root, private, public, kind):
    """
    The directory of the slot is made again.
    """
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root may give a socket away")
    plant(kind, private / "run" / "runtime.sock", root / "none")
    run("ExecStartPost", root)

    assert run("ExecStopPost", root).returncode == 0
    assert run("ExecStartPre", root).returncode == 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(private / "run" / "runtime.sock"))
        listener.listen()
        assert run("ExecStartPost", root).returncode == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(public))


@pytest.mark.parametrize("check", ["[ ! -L new.sock ];", "[ -S new.sock ];"])
def test_each_check_is_needed(root, private, public, monkeypatch, check):
    """
    Control: without one of the checks the command ends well with a link, or with a file.
    """
    whole = command("ExecStartPost", root)
    assert check in whole
    kind = "link" if "-L" in check else "file"
    outside = root / "haproxy.sock"
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(outside))
        plant(kind, private / "run" / "runtime.sock", outside)

        done = subprocess.run(["sh", "-c", whole.replace(check, "")], check=False)

    assert done.returncode == 0
    assert public.is_symlink()


def test_a_stop_leaves_no_path_to_the_slot(root, private, public, bound):
    """
    HAProxy and the host program find nothing there.
    """
    run("ExecStartPost", root)

    assert run("ExecStopPost", root).returncode == 0

    assert not public.is_symlink()
    assert sorted(path.name for path in private.iterdir()) == []
