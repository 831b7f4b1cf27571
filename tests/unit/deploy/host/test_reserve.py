"""
The way back of a host whose disk is full.  The disk is a small tmpfs, filled to its last byte.
"""

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from deploy.host import reserve
from deploy.host.layout import RESERVES
from deploy.host.protocol import (
    HostError,
    JournalAppend,
    LeaseAcquire,
    SlotStart,
    SlotStop,
    TrafficDrain,
    TrafficSet,
)
from tests.local_host import serve
from tests.unit.deploy.host.fakes import BUNDLE, OTHER, TemporaryHost

GOOD, BAD = BUNDLE, OTHER
INODES = 128


@pytest.fixture
def disk(tmp_path):
    """
    An own small file system.
    """
    options = f"size=16m,nr_inodes={INODES}"
    argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def host(disk):
    """
    A provisioned host: blue serves GOOD, and BAD takes over in green.
    """
    host = TemporaryHost(disk)
    host.layout.etc.mkdir(parents=True)
    host.layout.host_config.write_text("{}")
    lay(host)
    serve(host.system, GOOD, "v1", "blue")
    host.stage(BAD, "v2")
    host.lease(ttl_s=3600)
    host.call(SlotStart("green", BAD))
    host.call(TrafficSet({"green": 100, "blue": 0}))
    host.call(TrafficDrain("blue"))
    host.call(SlotStop("blue"))
    return host


def lay(host):
    for path, size in zip(host.layout.reserves, RESERVES.values(), strict=True):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def fill(directory):
    """
    Take every free byte of the file system.
    """
    descriptor = os.open(directory / "junk", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"x" * (1 << 20))
    finally:
        os.close(descriptor)
    assert os.statvfs(directory).f_bavail == 0


def take_inodes(directory):
    with contextlib.suppress(OSError):
        for number in range(2 * INODES):
            (directory / f"junk{number}").touch()
    assert os.statvfs(directory).f_favail == 0


def way_back(host):
    """
    What a rollback does on a host, after the operator of the release died.
    """
    host.clock.pass_s(3601)
    host.fence = None
    host.release = "r2"
    host.lease()
    host.call(JournalAppend(step="release.begin", data={"kind": "rollback"}))
    host.call(SlotStart("blue", GOOD))
    host.call(TrafficSet({"green": 0, "blue": 100}))
    host.call(TrafficDrain("green"))
    host.call(SlotStop("green"))
    host.call(JournalAppend(step="release.end", data={"outcome": "rolled_back"}))


def assert_back(host):
    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    assert host.units["green"].active == "inactive"
    steps = [line["step"] for line in host.journal()]
    assert steps[-1] == "release.end"
    assert host.status().journal_damaged == 0
    assert "100" in host.layout.haproxy_state.read_text()
    assert json.loads(host.layout.lease.read_text())["fence"] == host.fence


def test_a_full_disk_does_not_block_the_way_back(host, disk):
    """
    Lease, journal, slots and traffic: with no byte free, and without use of the reserve.
    """
    fill(disk)

    way_back(host)

    assert_back(host)
    assert host.status().is_reserve_whole
    assert os.statvfs(disk).f_bavail == 0


def test_nor_does_a_disk_that_another_program_keeps_full(host, disk):
    """
    It takes every block that becomes free, before each command that the host runs.
    """
    fill(disk)
    host.system.before = lambda _: fill(disk)

    way_back(host)

    assert_back(host)


def test_nor_does_a_disk_without_a_free_inode(host, disk):
    """
    Full of small files.
    """
    take_inodes(disk)

    way_back(host)

    assert_back(host)


def test_without_allocated_space_and_reserve_it_is_blocked(disk, monkeypatch):
    """
    Control: the same host without the three measures.
    """
    monkeypatch.setattr(reserve, "allocate_ahead", lambda *_: None)
    monkeypatch.setattr(reserve, "give_back", lambda *_: False)
    host = TemporaryHost(disk)
    serve(host.system, GOOD, "v1", "blue")
    host.lease()
    fill(disk)

    def write_a_block():
        for _ in range(200):
            host.call(JournalAppend(step="release.note", data={}))

    with pytest.raises(HostError) as caught:
        write_a_block()
    assert caught.value.kind == "DiskTooSmall"


@pytest.mark.parametrize("spare", [True, False])
def test_only_the_spare_file_lets_a_full_disk_change_the_lease(disk, monkeypatch, spare):
    """
    Control: a new file beside the old one needs a block.
    """
    path = disk / "lease.json"
    reserve.write_spare(path, b"one", 0o640)
    if not spare:
        (disk / ".spare-lease.json").unlink()
    fill(disk)

    if spare:
        reserve.write_spare(path, b"two", 0o640)
        reserve.write_spare(path, b"three", 0o640)
        assert path.read_bytes() == b"three"
    else:
        with pytest.raises(OSError, match="No space left"):
            reserve.write_spare(path, b"two", 0o640)
        assert path.read_bytes() == b"one"


def test_another_release_can_be_linked_from_the_reserve(host, disk):
    """
    A rollback further back writes a link, which needs a block and an inode: the reserve has them.
    """
    older = "c" * 64
    host.stage(older, "v0")
    fill(disk)
    take_inodes_left(disk)

    host.call(SlotStart("blue", older))

    assert host.layout.slot_link("blue").readlink() == host.layout.release(older)
    assert not host.status().is_reserve_whole


def take_inodes_left(directory):
    with contextlib.suppress(OSError):
        for number in range(2 * INODES):
            os.mkfifo(directory / f"fifo{number}")


def test_systemd_gets_room_for_its_link(host):
    """
    `systemctl enable` fails for lack of space until some of the reserve was given back.
    """
    run = host.system.run
    full = [3]

    def once_full(argv, **options):
        if argv[:2] == ["systemctl", "enable"] and full[0]:
            full[0] -= 1
            return type(run(["systemctl", "show", "slipway-runtime@blue.service"], timeout_s=1))(
                1, "", "Failed to enable unit: File /etc/x: No space left on device\n"
            )
        return run(argv, **options)

    host.system.run = once_full

    assert host.call(SlotStart("blue", GOOD)).unit == "active"

    assert full == [0]
    left = [path.stat().st_size for path in host.layout.reserves if path.exists()]
    assert left == [RESERVES["/var/lib/slipway/reserve"] - 3 * reserve.STEP_BYTES]


def test_what_was_used_is_laid_again_when_space_is_back(host, disk):
    """
    With the next lease; until then `status` says that it was used.
    """
    assert reserve.give_back(host.system)
    host.system.free = 1 << 20
    assert not host.status().is_reserve_whole

    host.call(LeaseAcquire("ann@desk:1", 30))
    assert not host.status().is_reserve_whole

    host.system.free = 1 << 40
    host.call(LeaseAcquire("ann@desk:1", 30))
    assert host.status().is_reserve_whole


def test_a_used_up_reserve_is_disktoosmall(host, monkeypatch):
    """
    The error of the disk is passed on when nothing is left.
    """
    for _ in range(100):
        reserve.give_back(host.system)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "/x")

    with pytest.raises(OSError, match="No space left"):
        reserve.with_room(host.system, full)
    assert not any(path.exists() for path in host.layout.reserves)


def test_another_error_uses_no_reserve(host):
    """
    A read-only file system is not mended by free space.
    """

    def broken():
        raise OSError(errno.EROFS, "Read-only file system", "/x")

    with pytest.raises(OSError, match="Read-only"):
        reserve.with_room(host.system, broken)
    assert host.status().is_reserve_whole


def test_a_crash_while_the_spare_is_written_leaves_the_old_content(disk, monkeypatch):
    """
    The file is exchanged only when the new content is on disk.
    """
    path = Path(disk / "lease.json")
    reserve.write_spare(path, b"one", 0o640)

    def crash(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        reserve.write_spare(path, b"two", 0o640)

    assert path.read_bytes() == b"one"
