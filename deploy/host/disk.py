"""
Does it fit?
"""

from __future__ import annotations

import os
from pathlib import Path

from deploy.host.files import nearest_existing
from deploy.host.rpc import HostError

MARGIN_BYTES = 64 << 20  # left over for journals, logs and bytecode


def free_bytes(path: Path) -> int:
    """
    Return what may still be written where *path* is, or will be.
    """
    found = os.statvfs(nearest_existing(path))
    return found.f_bavail * found.f_frsize


def check_room(needs: dict[Path, int]) -> dict[str, int]:
    """
    Return need_bytes of all, and free_bytes of the file system with the least left over.

    Directories on one file system share its space.

    Raises:
        HostError: One of them does not fit.
    """
    by_device: dict[int, tuple[Path, int]] = {}
    for path, need in needs.items():
        device = nearest_existing(path).stat().st_dev
        first, already = by_device.get(device, (path, 0))
        by_device[device] = (first, already + need)
    rooms = [(free_bytes(path) - need, need, path) for path, need in by_device.values()]
    left, need, path = min(rooms, key=lambda room: room[0])
    if need and left < MARGIN_BYTES:
        raise too_small(path, f"{_mib(need)} are needed, {_mib(left + need)} are free")
    return {"need_bytes": sum(needs.values()), "free_bytes": left + need}


def too_small(path: Path | str, why: str) -> HostError:
    """
    Return the error that says that *path* has no room.
    """
    return HostError(
        "DiskTooSmall",
        f"the bundle does not fit on the disk of {path}",
        why,
        "make room there (inv status shows what is free), or lower release.keep",
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
