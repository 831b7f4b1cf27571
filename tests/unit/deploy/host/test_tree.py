"""
The record of a tree, and what is found altered by it.
"""

import os
import shutil

import pytest

from deploy.host import tree

CONTENT = b"import this\n"


@pytest.fixture
def recorded(tmp_path):
    """
    A tree with a program, a module, a link and an empty directory, and its record.
    """
    top = tmp_path / "venv"
    (top / "lib" / "empty").mkdir(parents=True)
    (top / "bin").mkdir()
    (top / "bin" / "tool").write_bytes(CONTENT)
    (top / "lib" / "module.py").write_bytes(CONTENT)
    (top / "lib" / "link").symlink_to("module.py")
    (top / tree.RECORD).write_bytes(tree.describe(top))
    return top


def rewrite(path, content):
    """
    Write other content of the same size, with the time of the old one.
    """
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


MODULE = "lib/module.py"
CHANGES = {
    "content": (lambda top: rewrite(top / MODULE, CONTENT[::-1]), MODULE),
    "size": (lambda top: (top / MODULE).write_bytes(b""), MODULE),
    "mode": (lambda top: (top / MODULE).chmod(0o666), MODULE),
    "set-id bit": (lambda top: (top / "bin/tool").chmod(0o4755), "bin/tool"),
    "missing": (lambda top: (top / MODULE).unlink(), MODULE),
    "added": (lambda top: (top / "lib/sitecustomize.py").touch(), "lib/sitecustomize.py"),
    "directory gone": (lambda top: (top / "lib/empty").rmdir(), "lib/empty"),
    "directory mode": (lambda top: (top / "lib/empty").chmod(0o777), "lib/empty"),
    "target": (
        lambda top: ((top / "lib/link").unlink(), (top / "lib/link").symlink_to("/etc/passwd")),
        "lib/link",
    ),
    "type": (lambda top: ((top / MODULE).unlink(), os.mkfifo(top / MODULE)), MODULE),
}


@pytest.mark.parametrize("deep", [False, True])
def test_a_tree_as_it_was_recorded_is_not_altered(recorded, deep):
    assert tree.compare(recorded, deep=deep) == tree.Altered(is_recorded=True, names=())


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found(recorded, name):
    """
    Also one that keeps the size and the time of the last write.
    """
    change, altered = CHANGES[name]
    change(recorded)
    assert tree.compare(recorded, deep=False).names == (altered,)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_another_owner_is_found(recorded):
    os.chown(recorded / MODULE, 1, 0)
    assert tree.compare(recorded, deep=False).names == (MODULE,)


def test_files_with_other_times_are_hashed(recorded, tmp_path):
    """
    A tree that was restored from a backup is as it was.
    """
    copy = tmp_path / "restored"
    shutil.copytree(recorded, copy, symlinks=True)
    assert tree.compare(copy, deep=False) == tree.Altered(is_recorded=True, names=())


def test_only_a_deep_look_reads_files_with_the_same_times(recorded, monkeypatch):
    """
    Bytes that a disk lost change no time.
    """
    read = []
    monkeypatch.setattr(tree, "_sha256", lambda path: read.append(path.name) or "0" * 64)
    assert tree.compare(recorded, deep=False).names == ()
    assert read == []
    assert tree.compare(recorded, deep=True).names == ("bin/tool", MODULE)


HEADER = "lib/empty/torch.h"


@pytest.fixture
def with_header(recorded):
    (recorded / HEADER).write_bytes(CONTENT)
    (recorded / tree.RECORD).write_bytes(tree.describe(recorded))
    return recorded


def test_a_header_is_compared_by_a_deep_look(with_header):
    """
    Another look compares it where something else is altered too.
    """
    (with_header / HEADER).write_bytes(b"")
    assert tree.compare(with_header, deep=False).names == ()
    assert tree.compare(with_header, deep=True).names == (HEADER,)
    (with_header / MODULE).unlink()
    assert tree.compare(with_header, deep=False).names == (HEADER, MODULE)


@pytest.mark.parametrize(
    "replace", [lambda path: None, lambda path: path.symlink_to("/etc/passwd")]
)
def test_a_header_that_is_gone_or_a_link_is_always_found(with_header, replace):
    (with_header / HEADER).unlink()
    replace(with_header / HEADER)
    assert tree.compare(with_header, deep=False).names == (HEADER,)


@pytest.mark.parametrize("text", [None, b"", b"0\nnothing\n", b"0\n[1]\n", b"0\n" + b"[" * 99999])
def test_a_tree_without_a_good_record_is_not_recorded(recorded, text):
    """
    Neither one of an older host program nor one whose record is damaged.
    """
    if text is None:
        (recorded / tree.RECORD).unlink()
    elif text:
        (recorded / tree.RECORD).write_bytes(text)
    else:
        (recorded / tree.RECORD).unlink()
        (recorded / tree.RECORD).mkdir()
    assert tree.compare(recorded, deep=False).is_recorded is False


def test_a_link_in_place_of_the_tree_is_not_followed(recorded, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(recorded)
    assert tree.compare(link, deep=False).is_recorded is False
