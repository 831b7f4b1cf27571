"""
Files and directories that the file system protects from every change: chattr +i and +a.
"""

from __future__ import annotations

import fcntl
import os
import posixpath
import stat
import struct
from collections.abc import Iterable

# Source: linux/fs.h, FS_IOC_GETFLAGS on 64 bits, FS_IMMUTABLE_FL, FS_APPEND_FL.
_GETFLAGS = 0x80086601
_PROTECTED = 0x10 | 0x20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def immutable_paths(root: str, paths: Iterable[str]) -> tuple[str, ...]:
    """
    Return those of *paths*, and of the directories that they are in, that are protected.
    """
    candidates = {place for path in paths for place in (path, posixpath.dirname(path))}
    return tuple(p for p in sorted(candidates) if _is_protected(f"{root.rstrip('/')}{p}"))


def _is_protected(path: str) -> bool:
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return False
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return False
    try:
        flags = fcntl.ioctl(descriptor, _GETFLAGS, bytes(8))
        return bool(struct.unpack_from("=I", flags)[0] & _PROTECTED)
    except OSError:
        return False  # a file system without such flags
    finally:
        os.close(descriptor)
