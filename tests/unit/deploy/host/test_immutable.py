"""
Files that chattr protects; the flags come from the kernel of this machine.
"""

import subprocess

import pytest

from deploy.host.immutable import immutable_paths


@pytest.fixture
def protect(tmp_path):
    """
    Return a function that sets a flag of a path; afterwards it is gone.
    """
    paths = []

    def chattr(flag, path):
        done = subprocess.run(["chattr", f"+{flag}", path], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"this file system or user sets no such flags: {done.stderr.decode()}")
        paths.append(path)

    yield chattr
    for path in paths:
        subprocess.run(["chattr", "-i", "-a", path], check=True)


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_protected_file_and_directory_are_named(tmp_path, protect, flag):
    """
    A directory is named for what is in it, also for what is missing there.
    """
    for name in ("plain", "held"):
        (tmp_path / "etc" / name).mkdir(parents=True)
        (tmp_path / "etc" / name / "file").touch()
    (tmp_path / "etc/fifo").symlink_to("held/file")
    protect(flag, tmp_path / "etc/plain/file")
    protect(flag, tmp_path / "etc/held")

    names = ("/etc/plain/file", "/etc/held/file", "/etc/held/missing", "/etc/fifo", "/no/where")
    assert immutable_paths(str(tmp_path), names) == ("/etc/held", "/etc/plain/file")


def test_an_ordinary_tree_has_none(tmp_path):
    (tmp_path / "file").touch()
    assert immutable_paths(str(tmp_path), ("/file", "/")) == ()
