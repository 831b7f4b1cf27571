"""
Makes a tree that another user wrote root's own, without running or following anything in it.

The writer's processes must have ended.  What could lead out of the tree, or carry rights with it,
is refused; the tree is then left as it was found, for its caller to delete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from deploy.host.protocol import ErrorKind, HostError

DIRECTORY_MODE, FILE_MODE, PROGRAM_MODE = 0o750, 0o640, 0o750
DEPTH_MAX = 64
ENTRIES_MAX = 1_000_000
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OWN_LABEL = "security.selinux"  # of the system, not of the writer


def take_over(tree: Path, *, writer: int, gid: int, interpreter: Path) -> None:
    """
    Give *tree* to this user and the group *gid*: directories 0750, files 0640, programs 0750.

    Args:
        writer: User id that everything in it must belong to.
        interpreter: The one absolute target of links, for those in `bin/`.

    Raises:
        HostError: It has a link out of the tree, a device, a pipe, a socket, a set-id file, a
            file with another name elsewhere, or a file of another user.
    """
    for entry in _walk(tree):
        _check(entry, writer, interpreter)
    for entry in _walk(tree):
        entry.own(gid)


def close_to_group(tree: Path, gid: int) -> None:
    """
    Give a tree or file that root wrote to the group *gid*, with the modes of `take_over`.
    """
    # The tree itself last: its mode then says that all of it is closed.
    for entry in _walk(tree, from_below=True):
        entry.own(gid)


def is_closed(tree: Path, gid: int) -> bool:
    """
    Return whether `close_to_group` or `take_over` has finished with *tree*.
    """
    status = tree.lstat()
    return status.st_gid == gid and not status.st_mode & 0o007


def check_interpreter(venv: Path, interpreter: Path) -> None:
    """
    Refuse the *venv* unless its `bin/python` leads to *interpreter*.
    """
    python = venv / "bin" / "python"
    try:
        target = os.readlink(python)  # noqa: PTH115
    except OSError as error:
        raise _refused("bin/python", f"it cannot be read: {error.strerror}") from None
    if target != str(interpreter):
        raise _refused("bin/python", f"it leads to {target[:200]!r}, not to {interpreter}")


class Entry:
    """
    One file, directory or link, held by a descriptor where it has content.

    Attributes:
        name: Path in the tree.
        status: As found.
        target: Of a link.
    """

    def __init__(self, name: str, directory: int, base: str) -> None:
        self._directory, self._base = directory, base
        self.name = name
        self.status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        self.target: str | None = None
        self.descriptor: int | None = None
        if stat.S_ISLNK(self.status.st_mode):
            self.target = os.readlink(base, dir_fd=directory)
        elif stat.S_ISREG(self.status.st_mode) or stat.S_ISDIR(self.status.st_mode):
            self.descriptor = os.open(base, _FLAGS, dir_fd=directory)
            self.status = os.fstat(self.descriptor)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def own(self, gid: int) -> None:
        """
        Give it to this user and *gid*, with a mode and no attributes of its writer.
        """
        uid = os.geteuid()
        if self.descriptor is None:
            if self.target is not None:
                os.chown(self._base, uid, gid, dir_fd=self._directory, follow_symlinks=False)
            return
        os.fchown(self.descriptor, uid, gid)
        if self.is_directory:
            os.fchmod(self.descriptor, DIRECTORY_MODE)
        else:
            is_program = self.status.st_mode & 0o111
            os.fchmod(self.descriptor, PROGRAM_MODE if is_program else FILE_MODE)
        self._strip()

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _strip(self) -> None:
        # Access lists and capabilities would outlive the change of the owner.
        assert self.descriptor is not None
        try:
            names = os.listxattr(self.descriptor)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOSYS):
                return
            raise
        for name in names:
            if name != _OWN_LABEL:
                with contextlib.suppress(FileNotFoundError):
                    os.removexattr(self.descriptor, name)


def _walk(tree: Path, *, from_below: bool = False) -> Iterator[Entry]:
    """
    Yield every entry, the tree itself as "."; a directory before what it holds, or after it.
    """
    parent = os.open(tree.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    counter = [0]
    try:
        yield from _below(parent, tree.name, ".", 0, counter, from_below)
    finally:
        os.close(parent)


def _below(
    directory: int, base: str, name: str, depth: int, counter: list[int], from_below: bool
) -> Iterator[Entry]:
    counter[0] += 1
    if depth > DEPTH_MAX or counter[0] > ENTRIES_MAX:
        raise _refused(name, f"the tree is deeper than {DEPTH_MAX} or has over {ENTRIES_MAX} files")
    entry = Entry(name, directory, base)
    try:
        if not from_below:
            yield entry
        if entry.is_directory and entry.descriptor is not None:
            for child in sorted(os.listdir(entry.descriptor)):  # noqa: PTH208
                path = child if name == "." else f"{name}/{child}"
                yield from _below(entry.descriptor, child, path, depth + 1, counter, from_below)
        if from_below:
            yield entry
    finally:
        entry.close()


def _check(entry: Entry, writer: int, interpreter: Path) -> None:
    name, status, mode = entry.name, entry.status, entry.status.st_mode
    if status.st_uid != writer:
        raise _refused(name, f"it belongs to user {status.st_uid}, not to the build user {writer}")
    if entry.target is not None:
        _check_link(name, entry.target, interpreter)
        return
    if entry.descriptor is None:
        raise _refused(name, "it is a device, a pipe or a socket")
    if mode & (stat.S_ISUID | stat.S_ISGID):
        raise _refused(name, f"it has the set-id bits {stat.S_IMODE(mode):04o}")
    if not entry.is_directory and status.st_nlink != 1:
        raise _refused(name, f"it has {status.st_nlink} names, and may be a file of elsewhere")


def _check_link(name: str, target: str, interpreter: Path) -> None:
    """
    Refuse a link out of the tree.

    Its leading ".." count from the directory that the walk reached without a link; what follows
    is checked at each link on its way, so the chain stays inside.
    """
    if target == str(interpreter) and name.startswith("bin/") and name.count("/") == 1:
        return
    parts = target.split("/")
    depth = name.count("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    if target.startswith("/") or ups > depth or ".." in parts[ups:]:
        raise _refused(name, f"it is a link to {target[:200]!r}, out of the tree")


def _refused(name: str, why: str) -> HostError:
    return HostError(
        ErrorKind.BUNDLE_TAMPERED,
        f"what a wheel installed is refused: {name[:200]!r}",
        why,
        "nothing was placed; find the wheel that does it, and remove it from the row's lock",
    )
