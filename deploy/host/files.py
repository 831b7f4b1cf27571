"""
Files that are whole or absent, whatever happens in between.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System

TRASH = ".trash-"  # being deleted
UNFINISHED = ".tmp-"  # being made
_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """
    Return the SHA-256 of the contents of *path*, in hexadecimal.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    """
    Put *data* at *path*: a reader, or a crash, finds the old contents or the new.
    """
    draft = path.with_name(f"{UNFINISHED}{path.name}")  # callers hold the lock: no two at once
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def link_atomic(link: Path, target: Path) -> None:
    """
    Let the symlink *link* lead to *target*, in one step.
    """
    draft = link.with_name(f"{UNFINISHED}{link.name}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
    sync_directory(link.parent)


def sync_directory(path: Path) -> None:
    """
    Make the names in *path* last over a power cut.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """
    Bring everything that was written to the file system of *path* to its disk.
    """
    # One call for a tree of thousands of files; Python has only os.sync, for all disks.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """
    Delete the tree at *path*; a crash leaves no half of it under its name.
    """
    trash = path.with_name(f"{TRASH}{path.name}")
    remove(trash)
    path.rename(trash)
    remove(trash)


def remove(path: Path) -> None:
    """
    Delete the file, link or tree at *path*, if there is one.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def leftovers(directory: Path) -> list[Path]:
    """
    Return what a killed verb left in *directory*.
    """
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.name.startswith((TRASH, UNFINISHED)))


def nearest_existing(path: Path) -> Path:
    """
    Return *path*, or the closest directory above it that exists.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


@contextmanager
def locked(system: System, path: Path, timeout_s: float) -> Iterator[None]:
    """
    Hold the lock file at *path*; the kernel gives it back when this process dies.

    Raises:
        HostError: Another process held it for *timeout_s*.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not system.lock(descriptor, timeout_s):
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"{path} is locked",
                f"another process of the host program held it for {timeout_s:.0f} s",
                "wait for it: pgrep -af slipway-host",
            )
        yield
    finally:
        os.close(descriptor)
