"""
Disk space that is kept for the way back, so that a full disk never blocks it.

Three measures, from the most to the least certain:

- the lease and HAProxy's state are written into a spare file whose blocks they have already, which
  then changes places with the old one (`write_spare`);
- the journal has space allocated beyond its end (`allocate_ahead`);
- for what else needs a block or an inode, provisioning lays reserve files, which `with_room` gives
  back bit by bit.

A file system that copies on write (btrfs) needs new blocks also where blocks are allocated; there
only the reserve files help.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from deploy.host.files import remove, sync_directory
from deploy.host.layout import RESERVES, Layout
from deploy.host.system import System
from deploy.host.trusted_files import open_regular

Result = TypeVar("Result")

STEP_BYTES = 256 << 10  # given back at a time
RELAY_FREE_BYTES = 256 << 20  # free space from which on a used reserve is laid again
AHEAD_BYTES = 1 << 20  # of the journal, a few thousand lines
_AHEAD_MIN_BYTES = AHEAD_BYTES // 2
_BLOCK = 4096
_SPARE = ".spare-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEEP_SIZE = 1  # Source: fallocate(2), FALLOC_FL_KEEP_SIZE
_EXCHANGE = 2  # Source: rename(2), RENAME_EXCHANGE
_AT_FDCWD = -100


def with_room(system: System, work: Callable[[], Result]) -> Result:
    """
    Return what *work* returns; while it fails for lack of space, give back some of the reserve.

    Raises:
        OSError: It fails for another reason, or the reserve is used up.
    """
    while True:
        try:
            return work()
        except OSError as error:
            if error.errno not in _FULL or not give_back(system):
                raise


def give_back(system: System) -> bool:
    """
    Free some of each reserve file, the last of it with its inode; False if none is left.
    """
    gave = False
    for path in system.layout.reserves:
        try:
            size = path.stat().st_size
            if size > STEP_BYTES:
                os.truncate(path, size - STEP_BYTES)
            else:
                path.unlink()
        except OSError:
            continue
        gave = True
    return gave


def is_whole(layout: Layout) -> bool:
    """
    Return whether all of the reserve is there.
    """
    return all(_size(path) == size for path, size in _wanted(layout))


def lay_again(system: System) -> None:
    """
    Lay what was used of the reserve where space is back; provisioning lays it first.
    """
    if not system.layout.host_config.exists():
        return  # not provisioned
    for path, size in _wanted(system.layout):
        if _size(path) >= size or system.free_bytes(path.parent) < RELAY_FREE_BYTES:
            continue
        try:
            descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
        except OSError:
            continue
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            continue  # `status` reports it
        finally:
            os.close(descriptor)


def write_spare(path: Path, data: bytes, mode: int) -> None:
    """
    Replace the content of *path* by *data*, at most one block; also on a full disk.

    A crash leaves the old content or the new.  The first call for *path* needs free space.
    """
    # Callers hold the host's lock, so that no two write the same spare file.
    spare = path.with_name(f"{_SPARE}{path.name}")
    _remove_foreign(spare)
    descriptor = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
        _write(descriptor, data)
    finally:
        os.close(descriptor)
    if not _exchange(spare, path):
        spare.replace(path)
    _remove_foreign(spare)  # it was in the place of the file
    sync_directory(path.parent)
    if not spare.exists():
        _make_spare(spare, mode)


def _remove_foreign(spare: Path) -> None:
    """
    Remove *spare* if it is a link or a directory: it would be followed, or stop every later write.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(spare.lstat().st_mode):
            remove(spare)


def allocate_ahead(descriptor: int, end: int) -> None:
    """
    Allocate space beyond *end*, the end of the file, where less than half of it is left.
    """
    allocated = os.fstat(descriptor).st_blocks * 512
    if allocated < end + _AHEAD_MIN_BYTES:
        with contextlib.suppress(OSError):
            allocate(descriptor, end, AHEAD_BYTES)


def allocate(descriptor: int, start: int, size: int) -> None:
    """
    Allocate blocks without a change of the file's size, where the file system can.

    Raises:
        OSError: There is no room.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return
    if fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        if number in _FULL:
            raise OSError(number, os.strerror(number))


def _write(descriptor: int, data: bytes) -> None:
    written = 0
    while written < len(data):  # in place: the blocks stay
        written += os.pwrite(descriptor, data[written:], written)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)


def _make_spare(spare: Path, mode: int) -> None:
    try:
        descriptor = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
    except OSError:
        return  # the next write makes it
    try:
        with contextlib.suppress(OSError):
            allocate(descriptor, 0, _BLOCK)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """
    Let two files change names in one step; False if one is missing or the kernel cannot.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)


def _wanted(layout: Layout) -> list[tuple[Path, int]]:
    return list(zip(layout.reserves, RESERVES.values()))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
