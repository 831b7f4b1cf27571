"""
Free space on a host, checked before anything is sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from deploy.host.files import nearest_existing
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System

MARGIN_BYTES = 64 << 20  # reserved for journals, logs and bytecode


class DiskNeed(NamedTuple):
    """
    Attributes:
        need_bytes: Sum over all directories.
        free_bytes: Free space of the file system that has the least left over.
    """

    need_bytes: int
    free_bytes: int


def free_bytes(system: System, path: Path) -> int:
    """
    Return the free space of the file system that *path* is, or will be, on.
    """
    return system.free_bytes(nearest_existing(path))


def check_space(system: System, needs: dict[Path, int]) -> DiskNeed:
    """
    Return what *needs*, bytes by directory, comes to.  Directories on one file system share it.

    Raises:
        HostError: A file system is too small.
    """
    by_device: dict[int, tuple[Path, int]] = {}
    for path, need in needs.items():
        device = nearest_existing(path).stat().st_dev
        first, already = by_device.get(device, (path, 0))
        by_device[device] = (first, already + need)
    rooms = [(free_bytes(system, path) - need, need, path) for path, need in by_device.values()]
    left, need, path = min(rooms, key=lambda room: room[0])
    if need and left < MARGIN_BYTES:
        raise too_small(path, f"{_mib(need)} are needed, {_mib(left + need)} are free")
    return DiskNeed(sum(needs.values()), left + need)


def too_small(path: Path | str, why: str) -> HostError:
    """
    Return the error for a bundle that does not fit on the file system of *path*.
    """
    return HostError(
        ErrorKind.DISK_TOO_SMALL,
        f"the bundle does not fit on the disk of {path}",
        why,
        "free space there: docs/runbooks/on-call.md says what may be deleted",
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
