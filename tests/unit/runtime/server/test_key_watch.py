"""
The keys in force follow the file; the clock is not needed: each look is a call.
"""

import logging
import os
from pathlib import Path

import pytest

from runtime.server import key_watch
from runtime.server.key_watch import KeyWatch
from tests.unit.runtime.server.test_key_file import TOKEN, document


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def replace(path, content):
    draft = path.with_name("draft")
    draft.write_bytes(content)
    draft.replace(path)


def test_a_change_is_in_force_at_the_next_look(path):
    """
    Added, revoked: no restart.
    """
    watch = KeyWatch(path)
    assert watch.ring is None

    replace(path, document())
    watch.look()
    assert watch.ring.find(TOKEN)

    replace(path, document(secrets=[]))
    watch.look()
    assert watch.ring.find(TOKEN) is None
    assert watch.problem is None


def test_a_file_that_did_not_change_is_not_read(path, monkeypatch):
    replace(path, document())
    watch = KeyWatch(path)
    reads = []
    monkeypatch.setattr("runtime.server.key_watch._read", lambda p: reads.append(p) or document())
    watch.look()
    assert reads == []
    replace(path, document())  # the control: another file with the same content
    watch.look()
    assert reads == [path]


def test_a_file_that_could_not_be_read_once_is_read_at_the_next_look(path, monkeypatch):
    """
    A process without a free file descriptor, say: the key was revoked meanwhile.
    """
    replace(path, document())
    watch = KeyWatch(path)
    read = key_watch._read

    def fail(path):
        monkeypatch.setattr("runtime.server.key_watch._read", read)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("runtime.server.key_watch._read", fail)
    replace(path, document(secrets=[]))
    watch.look()
    assert watch.ring.find(TOKEN), "the last good keys"

    watch.look()
    assert watch.ring.find(TOKEN) is None


@pytest.mark.parametrize("broken", [b"{torn", b"", b"[]"])
def test_a_broken_file_keeps_the_last_good_one(path, broken, caplog):
    """
    It is logged once, and the next good one is taken.
    """
    changes = []
    replace(path, document())
    watch = KeyWatch(path, on_change=lambda watch: changes.append(watch.problem))
    with caplog.at_level(logging.INFO, "runtime.keys"):
        replace(path, broken)
        watch.look()
        watch.look()
    assert watch.ring.find(TOKEN)
    assert watch.problem
    assert [r.getMessage().split()[0] for r in caplog.records] == ["keys.rejected"]

    replace(path, document(weight=2))
    watch.look()
    assert watch.problem is None
    assert changes[0] is None
    assert changes[1]
    assert changes[2] is None


def test_a_file_that_is_gone_opens_nothing(path):
    replace(path, document())
    watch = KeyWatch(path)
    path.unlink()
    watch.look()
    assert watch.ring.find(TOKEN)
    assert "gone" in watch.problem


def test_a_file_that_is_broken_at_the_start_lets_nobody_in(path):
    replace(path, b"{torn")
    watch = KeyWatch(path)
    assert watch.ring is not None
    assert watch.ring.find(TOKEN) is None


def test_what_is_no_plain_file_is_never_waited_for(path, tmp_path):
    """
    A pipe would block the runtime for ever, a link could name any file.
    """
    os.mkfifo(path)
    assert "plain file" in KeyWatch(path).problem
    path.unlink()
    (tmp_path / "other").write_bytes(document())
    path.symlink_to(tmp_path / "other")
    assert KeyWatch(path).problem


def test_a_folder_in_the_place_of_the_file_is_named_once(path, caplog):
    """
    However often it is looked at; no look leaves a descriptor open.
    """
    replace(path, document())
    watch = KeyWatch(path)
    path.unlink()
    path.mkdir()
    watch.look()
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        watch.look()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert [r.getMessage().split()[0] for r in caplog.records] == ["keys.rejected"]
    assert watch.ring.find(TOKEN)


def test_the_hosts_own_token_is_read_beside_the_keys(path, tmp_path):
    host_key = tmp_path / "host_key"
    host_key.write_text("a" * 64 + "\n")
    assert KeyWatch(path, host_key).host_hash is None  # no keys, so it needs none
    replace(path, document())
    assert KeyWatch(path, host_key).host_hash == "a" * 64
