"""
Reading below a trusted directory, with openat2 and without it.
"""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from deploy.host import trusted_files
from deploy.host.trusted_files import Untrusted, open_plain, read_below

SECRET = b"of root alone"


@pytest.fixture(params=["openat2", "component by component"])
def way(request, monkeypatch):
    """
    Both ways give the same answers.
    """
    if request.param != "openat2":
        monkeypatch.setattr(trusted_files, "_openat2", lambda directory, relative: None)
    return request.param


@pytest.fixture
def root(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    inside = tmp_path / "root"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_bytes(b"content")
    return inside


def test_a_plain_file_is_read(root, way):
    assert read_below(root, "a/b/file", 7) == b"content"


def test_a_link_to_the_trusted_directory_is_followed(root, way, tmp_path):
    """
    The way to it is root's own.
    """
    (tmp_path / "link").symlink_to(root)

    assert read_below(tmp_path / "link", "a/b/file", 100) == b"content"


def link(root):
    (root / "x").symlink_to("../secret")
    return "x"


def absolute_link(root):
    (root / "x").symlink_to(root.parent / "secret")
    return "x"


def linked_directory(root):
    (root / "x").symlink_to("..")
    return "x/secret"


def inner_link(root):
    (root / "x").symlink_to("a/b/file")
    return "x"


def magic_link(root):
    (root / "x").symlink_to("/proc/self/root")
    return "x" + str(root.parent / "secret")


def pipe(root):
    os.mkfifo(root / "x")
    return "x"


def listening(root):
    with socket.socket(socket.AF_UNIX) as server:
        at = Path.cwd()
        os.chdir(root)
        try:
            server.bind("x")
        finally:
            os.chdir(at)
    return "x"


ATTACKS = [
    *(link, absolute_link, linked_directory, inner_link, magic_link, pipe, listening),
    lambda root: "../secret",
    lambda root: "a/../../secret",
    lambda root: str(root.parent / "secret"),
    lambda root: "a/b",
    lambda root: "",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_no_plain_file_below_is_refused(root, way, attack):
    """
    At once, also a pipe that nobody writes to.
    """
    with pytest.raises(Untrusted):
        read_below(root, attack(root), 100)


@pytest.mark.parametrize("attack", [link, absolute_link, linked_directory, magic_link])
def test_a_plain_open_would_follow(root, attack):
    """
    Negative control: these paths lead to the secret.
    """
    assert (root / attack(root)).read_bytes() == SECRET


def test_a_device_is_refused(way):
    with pytest.raises(Untrusted):
        read_below(Path("/dev"), "zero", 100)


def test_a_file_that_is_too_large_is_refused(root, way):
    """
    Its first byte too many ends the read.
    """
    with pytest.raises(Untrusted, match="more than 6 bytes"):
        read_below(root, "a/b/file", 6)


def test_a_missing_file_is_missing(root, way):
    with pytest.raises(FileNotFoundError):
        read_below(root, "a/none", 6)


def test_no_descriptor_is_left_open(root, way):
    """
    Neither after a read nor after a refusal.
    """
    names = [pipe(root), "a/b/file", "none", "a/b"]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    for name in names * 3:
        with contextlib.suppress(OSError):
            read_below(root, name, 100)

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_upload_that_is_a_link_is_refused(root):
    with pytest.raises(Untrusted):
        open_plain(root / link(root))


def test_the_kernel_of_this_machine_has_openat2(root):
    """
    Control: the first way above is a way of its own.
    """
    directory = os.open(root, os.O_RDONLY)
    try:
        descriptor = trusted_files._openat2(directory, "a/b/file")
    finally:
        os.close(directory)
    if descriptor is None:
        pytest.skip("the kernel or a seccomp filter has no openat2")
    os.close(descriptor)
