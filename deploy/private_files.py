"""
Private files and directories on this machine: 0600 and 0700, and never through a link.

Logs, bundles and caches may name hosts, addresses and paths, and what lies in them is used again.
So no other user of this machine may read them, and none may put another file in their place.
"""

import contextlib
import errno
import grp
import os
import stat
import tempfile
from pathlib import Path
from typing import IO

from deploy.errors import DeployError
from deploy.host.accounts import group_name, user_name
from deploy.host.files import sync_directory

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def use_private_umask() -> None:
    """
    Make every file that this process and its children create private, unless a mode is set.
    """
    os.umask(_OTHERS)


def private_directory(path: Path) -> Path:
    """
    Create the directory *path* if it is missing, and take all rights of other users; return it.

    Raises:
        DeployError: It is a link or a file, or other users own it or can replace it.
    """
    # Parents first: mkdir(parents=True) would give them the mode of the umask.
    if not path.parent.exists():
        private_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=DIRECTORY_MODE)
    check_directory(path)
    return path


def check_directory(path: Path) -> None:
    """
    Take all rights of other users to the existing directory *path*.

    Raises:
        DeployError: It is a link or a file, or other users own it or can replace it.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise _refused(path, "it is a symbolic link", f"replace it by a directory: rm {path}")
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(path, "it is not a directory", f"move it away: mv {path} {path}.old")
    _check_owner(path, status)
    parent = path.parent.stat()
    _check_owner(path.parent, parent)
    if writers := _other_writers(parent):
        raise _refused(
            path,
            f"{writers} can replace it: {path.parent} has mode {stat.S_IMODE(parent.st_mode):04o}",
            f"chmod go-w {path.parent}",
        )
    if status.st_mode & _OTHERS:
        _tighten(path, os.O_RDONLY | os.O_DIRECTORY, DIRECTORY_MODE)


def write_private(path: Path, data: str | bytes) -> None:
    """
    Replace *path* by a private file with the content *data*, in one step; a link is replaced.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # a key that others rely on must not be empty after a power cut
        draft.replace(path)
        sync_directory(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def create_output(path: Path) -> IO[bytes]:
    """
    Open *path*, which the operator named, to write it.

    A new file is private.  What exists keeps its mode: it may be a pipe or a device.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, FILE_MODE), "wb")


def open_private(path: Path) -> IO[str]:
    """
    Open the private file *path* to read and write it, as a lock does; create it if it is missing.

    Raises:
        DeployError: It is a link, or another user owns it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _refused(path, "it is a symbolic link", f"remove it: rm {path}") from None
    try:
        status = os.fstat(descriptor)
        _check_owner(path, status)
        if status.st_mode & _OTHERS:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "r+", encoding="utf-8")


def _tighten(path: Path, flags: int, mode: int) -> None:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
    except PermissionError as error:
        raise _refused(path, f"its mode cannot be changed: {error.strerror}", _RUN_AS) from None
    finally:
        os.close(descriptor)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in _trusted_users():
        raise _refused(path, f"user {user_name(status.st_uid)} owns it", _RUN_AS)


def _trusted_users() -> set[int]:
    """
    Return the users who can change what this process does anyway.

    Beside root and this user, the owner of the program, as with `sudo ./inv` in a user's checkout,
    and the owner of the home directory, as in a container for CI.
    """
    users = {0, os.geteuid(), Path(__file__).stat().st_uid}
    with contextlib.suppress(OSError, RuntimeError):
        users.add(Path.home().stat().st_uid)
    return users


_RUN_AS = "run this as its owner, or have it removed"


def _other_writers(parent: os.stat_result) -> str | None:
    if parent.st_mode & stat.S_ISVTX:  # as /tmp: only an owner can replace an entry
        return None
    if parent.st_mode & stat.S_IWOTH:
        return "every user"
    if parent.st_mode & stat.S_IWGRP and not _is_own_group(parent.st_gid):
        return f"group {group_name(parent.st_gid)}"
    return None


def _is_own_group(gid: int) -> bool:
    """
    Return whether the group has no member but this user, as on systems with a group for each user.
    """
    if gid == 0:
        return True
    user = user_name(os.geteuid())
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def _refused(path: Path, why: str, fix: str) -> DeployError:
    return DeployError(f"{path}: not usable for private files", why=why, fix=fix)
