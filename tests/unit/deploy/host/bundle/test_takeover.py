"""
Taking over what the build user wrote.
"""

import os
import socket
from pathlib import Path

import pytest

from deploy.host.bundle import takeover
from deploy.host.bundle.takeover import check_interpreter, take_over
from deploy.host.protocol import HostError

PYTHON = Path("/usr/bin/python3.11")
ME, MY_GROUP = os.geteuid(), os.getegid()


@pytest.fixture
def tree(tmp_path):
    """
    An environment as uv makes it.
    """
    tree = tmp_path / "venv"
    (tree / "bin").mkdir(parents=True)
    (tree / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (tree / "lib64").symlink_to("lib")
    (tree / "bin" / "python").symlink_to(PYTHON)
    (tree / "bin" / "python3").symlink_to("python")
    (tree / "bin" / "tool").write_text("#!/bin/sh\n")
    (tree / "bin" / "tool").chmod(0o777)
    module = tree / "lib" / "python3.11" / "site-packages" / "module.py"
    module.write_text("A = 1\n")
    module.chmod(0o666)
    return tree


def refusal(tree):
    with pytest.raises(HostError) as caught:
        take_over(tree, writer=ME, gid=MY_GROUP, interpreter=PYTHON)
    assert caught.value.kind == "BundleTampered"
    return caught.value


def test_an_environment_is_taken_over_with_closed_modes(tree):
    """
    Directories and programs 0750, other files 0640; its links stay.
    """
    take_over(tree, writer=ME, gid=MY_GROUP, interpreter=PYTHON)

    modes = {
        path.relative_to(tree).as_posix(): oct(path.lstat().st_mode & 0o7777)
        for path in [tree, *tree.rglob("*")]
        if not path.is_symlink()
    }
    assert modes == {
        ".": "0o750",
        "bin": "0o750",
        "bin/tool": "0o750",
        "lib": "0o750",
        "lib/python3.11": "0o750",
        "lib/python3.11/site-packages": "0o750",
        "lib/python3.11/site-packages/module.py": "0o640",
    }
    check_interpreter(tree, PYTHON)


def set_id(tree):
    (tree / "bin" / "tool").chmod(0o4755)


def second_name(tree):
    os.link(tree / "bin" / "tool", tree.parent / "elsewhere")


def pipe(tree):
    os.mkfifo(tree / "lib" / "x")


def listening(tree):
    at = Path.cwd()
    os.chdir(tree)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x")
    finally:
        os.chdir(at)


def deep(tree):
    os.makedirs(tree.joinpath(*["d"] * 80))  # noqa: PTH103


def linking(name, target):
    def link(tree):
        path = tree / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return link


@pytest.mark.parametrize(
    "attack",
    [
        linking("lib/x", "/etc/shadow"),
        linking("lib/x", "../../etc"),
        linking("up", ".."),
        linking("lib/x", "../lib64/../../x"),
        linking("lib/x", "./../../x"),
        linking("lib/x", str(PYTHON)),  # only in bin/
        linking("bin/python", "/bin/sh"),
        linking("bin/python", "/usr/bin/../bin/sh"),
        *(set_id, second_name, pipe, listening, deep),
    ],
)
def test_what_leads_out_or_carries_rights_is_refused(tree, attack):
    """
    Before the owner or mode of anything is changed.
    """
    attack(tree)

    refusal(tree)

    module = tree / "lib" / "python3.11" / "site-packages" / "module.py"
    assert module.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("target", ["module.py", "../../python3.11", "../../../bin/tool"])
def test_a_link_inside_is_kept(tree, target):
    """
    Wheels of libraries have links beside their files.
    """
    linking("lib/python3.11/site-packages/x", target)(tree)

    take_over(tree, writer=ME, gid=MY_GROUP, interpreter=PYTHON)


@pytest.mark.skipif(ME != 0, reason="only root has files of several users")
def test_a_file_of_another_user_is_refused(tree):
    """
    Such as one that a hard link brought in.
    """
    os.chown(tree / "bin" / "tool", 1, 1)

    assert "belongs to user 1" in refusal(tree).why


@pytest.mark.skipif(ME != 0, reason="only root may give files away")
def test_links_are_owned_and_not_followed(tree, tmp_path):
    """
    The target of a link keeps its owner, also where the link is checked no more.
    """
    outside = tmp_path / "outside"
    outside.write_text("x")
    for path in [tree, *tree.rglob("*"), outside]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    (tree / "lib" / "x").symlink_to("../bin/tool")
    os.chown(tree / "lib" / "x", 12345, 12345, follow_symlinks=False)

    take_over(tree, writer=12345, gid=54321, interpreter=PYTHON)

    for path in [tree, *tree.rglob("*")]:
        assert (path.lstat().st_uid, path.lstat().st_gid) == (0, 54321), path
    assert outside.stat().st_uid == 12345


@pytest.mark.parametrize("check", ["_check_link", "_check"])
def test_without_the_check_a_link_out_is_taken(tree, monkeypatch, check):
    """
    Negative control.
    """
    linking("lib/x", "/etc/shadow")(tree)
    monkeypatch.setattr(takeover, check, lambda *_: None)

    take_over(tree, writer=ME, gid=MY_GROUP, interpreter=PYTHON)


def test_a_python_that_is_a_file_is_refused(tree):
    """
    It would run at every start of a slot.
    """
    (tree / "bin" / "python").unlink()
    (tree / "bin" / "python").write_text("#!/bin/sh\n")
    take_over(tree, writer=ME, gid=MY_GROUP, interpreter=PYTHON)

    with pytest.raises(HostError, match=r"bin/python"):
        check_interpreter(tree, PYTHON)
