"""
File operations that leave a whole file or none, also after a crash.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.trusted_files import open_plain

TRASH = ".trash-"  # being deleted
UNFINISHED = ".tmp-"  # being written
_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """
    Return the SHA-256 of the contents of the plain file *path*, in hexadecimal.
    """
    digest = hashlib.sha256()
    with os.fdopen(open_plain(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes, mode: int, group: int | None = None) -> None:
    """
    Replace the content of *path* by *data*; a crash leaves the old content or the new.

    Args:
        group: Id of the group of the file; None: that of this process.
    """
    # Callers hold the host's lock, so that no two write the same draft.
    draft = path.with_name(f"{UNFINISHED}{path.name}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if group is not None:
                os.fchown(file.fileno(), -1, group)
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
    Point the symlink *link* to *target*, in one step.
    """
    draft = link.with_name(f"{UNFINISHED}{link.name}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
    sync_directory(link.parent)


def sync_directory(path: Path) -> None:
    """
    Write the entries of directory *path* to disk.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """
    Write all data of the file system of *path* to disk.
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
    Delete the tree at *path*; after a crash it is whole, or gone from that name.
    """
    trash = path.with_name(f"{TRASH}{path.name}")
    remove(trash)
    path.rename(trash)
    remove(trash)


def remove(path: Path) -> None:
    """
    Delete the file, link or tree at *path*, if it exists.
    """
    if path.is_dir() and not path.is_symlink():
        _remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    """
    Delete the directory *path*, whatever its depth: a hostile wheel may leave a tree on which
    shutil.rmtree, which calls itself, fails.

    No link is followed.  No other process may write there meanwhile.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    held = os.open(path, flags)
    names = [path.name]
    try:
        while names:
            below, is_empty = _unlink_files(held)
            if below is not None:
                inner = os.open(below, flags, dir_fd=held)
                names.append(below)
            elif is_empty:
                inner = os.open("..", flags, dir_fd=held)
                os.rmdir(names.pop(), dir_fd=inner)
            else:
                continue
            os.close(held)
            held = inner
    finally:
        os.close(held)


def _unlink_files(directory: int) -> tuple[str | None, bool]:
    """
    Delete the files of the open *directory* up to its first directory, and return that one's name,
    and whether there was nothing.
    """
    is_empty = True
    with os.scandir(directory) as entries:
        for entry in entries:
            is_empty = False
            if entry.is_dir(follow_symlinks=False):
                return entry.name, False
            os.unlink(entry.name, dir_fd=directory)
    return None, is_empty


def leftovers(directory: Path) -> list[Path]:
    """
    Return the entries of *directory* that a killed verb left unfinished.
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
    Hold the lock file at *path*; the kernel releases it when this process dies.

    Raises:
        HostError: Another process held it for *timeout_s*.
    """
    descriptor = _lock(system, path, timeout_s)
    # While this process waited, a data disk may have been mounted over the file: others hold the
    # one that is at *path* now.
    while not _is_at(path, descriptor):
        os.close(descriptor)
        descriptor = _lock(system, path, timeout_s)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(system: System, path: Path, timeout_s: float) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # After an error of the disk the way back still moves the traffic.
        descriptor = os.open(path, os.O_RDONLY)
    is_locked = False
    try:
        is_locked = system.lock(descriptor, timeout_s)
    finally:
        if not is_locked:
            os.close(descriptor)
    if not is_locked:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"{path} is locked",
            f"another process of the host program held it for {timeout_s:.0f} s",
            "wait for it: pgrep -af slipway-host",
        )
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
