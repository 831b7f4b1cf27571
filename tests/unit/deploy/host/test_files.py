"""
Deleting trees that a hostile wheel may have left, and writing files whole.
"""

import fcntl
import os
import shutil

import pytest

from deploy.host.files import discard, locked, remove, write_atomic
from deploy.host.layout import Layout
from deploy.host.system import System

DEPTH = 3000  # beyond the limits of recursion and, with these names, of a path


@pytest.fixture
def deep(tmp_path):
    """
    A tree of DEPTH directories with a file and a link out of the tree in each hundredth.
    """
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("kept")
    tree = tmp_path / "tree"
    tree.mkdir()
    held = os.open(tree, os.O_RDONLY)
    for number in range(DEPTH):
        if number % 100 == 0:
            os.symlink(tmp_path / "outside", "link", dir_fd=held)
            os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=held))
        os.mkdir("d" * 20, dir_fd=held)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = inner
    os.close(held)
    yield tree
    remove(tree)


@pytest.mark.parametrize("delete", [remove, discard])
def test_a_tree_of_any_depth_is_deleted(deep, delete):
    """
    No link in it is followed.
    """
    delete(deep)

    assert os.listdir(deep.parent) == ["outside"]  # noqa: PTH208
    assert (deep.parent / "outside" / "file").read_text() == "kept"


def test_the_standard_library_would_not(deep):
    """
    Negative control: its function calls itself for each level.
    """
    with pytest.raises((RecursionError, OSError)):
        shutil.rmtree(deep)


def test_a_wide_tree_is_deleted(tmp_path):
    """
    Files and directories mixed.
    """
    for number in range(300):
        (tmp_path / "tree" / f"d{number}" / "e").mkdir(parents=True)
        (tmp_path / "tree" / f"f{number}").write_text("x")
        (tmp_path / "tree" / f"d{number}" / "f").write_text("x")

    remove(tmp_path / "tree")

    assert not (tmp_path / "tree").exists()


def test_a_link_is_deleted_and_not_its_target(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")

    remove(tmp_path / "link")
    remove(tmp_path / "absent")

    assert os.listdir(tmp_path) == ["target"]  # noqa: PTH208


def test_a_draft_that_is_a_link_is_not_written_through(tmp_path):
    """
    A planted `.tmp-` name would let root write elsewhere.
    """
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / ".tmp-file").symlink_to(other)

    write_atomic(tmp_path / "file", b"new", 0o640)

    assert other.read_text() == "kept"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


class Mounting(System):
    """
    A data disk is mounted over the lock file while this process waits for it.
    """

    def lock(self, descriptor, timeout_s):
        if not self.layout.lock.with_name("hidden").exists():
            self.layout.lock.rename(self.layout.lock.with_name("hidden"))
        return super().lock(descriptor, timeout_s)


@pytest.mark.parametrize("kind", [System, Mounting])
def test_the_lock_that_is_held_is_the_one_at_its_path(tmp_path, kind):
    """
    Two processes never hold the lock of one host, each its own file.
    """
    system = kind(Layout(str(tmp_path)))
    with (
        locked(system, system.layout.lock, 0.1),
        system.layout.lock.open() as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
