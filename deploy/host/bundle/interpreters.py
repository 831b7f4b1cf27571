"""
Standalone Pythons: archives that were checked by hash, unpacked once, named by that hash.

An archive is unpacked by root, so nothing in it decides where a file goes, whose it is or what it
may do; it first runs in the sandbox.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploy.host import tree
from deploy.host.bundle.sandbox import sandboxed
from deploy.host.bundle.verify import check_file
from deploy.host.files import (
    TRASH,
    UNFINISHED,
    leftovers,
    locked,
    remove,
    sync_directory,
    sync_filesystem,
    write_atomic,
)
from deploy.host.journaled import journaled
from deploy.host.layout import python_upload
from deploy.host.protocol import Call, ErrorKind, HostError, PythonPlace, PythonPlaced
from deploy.host.system import System
from deploy.host.text import one_line
from deploy.host.trusted_files import open_plain

if TYPE_CHECKING:
    import tarfile

ENTRIES_MAX = 50_000
UNPACKED_MAX = 2 << 30  # bytes
_TOP = "python"  # directory that everything in an archive is in
_DIRECTORY_MODE, _FILE_MODE, _PROGRAM_MODE = 0o755, 0o644, 0o755
_CHUNK = 1 << 20
_LOCK_S, _RUN_S = 900.0, 60.0
_LINE = re.compile(r"# interpreter: (3\.\d{1,2}\.\d{1,3}) sha256:([0-9a-f]{64})\n")
# With what an environment needs: some builds lack modules where a library was missing.
_TELL = "import ctypes, platform, ssl, zlib; print(platform.python_version())"


def run(system: System, call: Call, request: PythonPlace) -> PythonPlaced:
    """
    Unpack the archive of a standalone Python, which was uploaded, unless it is in place.
    """
    detail = {"release": request.release, "sha256": request.sha256}
    with (
        journaled(system, call, request.VERB, detail, needs_lease=False) as op,
        locked(system, system.layout.stage_lock, _LOCK_S),
    ):
        archive = system.layout.incoming / python_upload(request.sha256)
        final = system.layout.pythons / request.sha256
        python = program(final.parent, final.name, request.python)
        is_new = not (_is_whole(python) and _is_as_placed(final))
        try:
            if is_new:
                check_file(archive, name=archive.name, sha256=request.sha256, size=request.size)
                _place(system, archive, final, request)
        finally:
            remove(archive)
        result = PythonPlaced(placed=is_new)
        op.result = result
    return result


def program(pythons: Path, sha256: str, python: str) -> Path:
    """
    Return the interpreter of the archive *sha256*.
    """
    return pythons / sha256 / "bin" / f"python{python}"


def named_in(lock: str) -> tuple[str, str] | None:
    """
    Return release and archive of the Python of the environment of *lock*; None: the host's own.
    """
    match = _LINE.match(lock)
    return (match[1], match[2]) if match else None


def _is_whole(python: Path) -> bool:
    try:
        status = python.lstat()
    except OSError:
        return False
    is_own = (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    return is_own and status.st_mode == stat.S_IFREG | _PROGRAM_MODE


def _is_as_placed(final: Path) -> bool:
    """
    Return whether each file is as it came out of the archive, by its hash.
    """
    try:
        altered = tree.compare(final, deep=True)
    except OSError:
        return False
    return altered.is_recorded and not altered.names


def _place(system: System, archive: Path, final: Path, request: PythonPlace) -> None:
    pythons = system.layout.pythons
    pythons.mkdir(parents=True, exist_ok=True)
    pythons.chmod(_DIRECTORY_MODE)
    for path in leftovers(pythons):
        remove(path)
    draft = pythons / f"{UNFINISHED}{final.name}"
    try:
        unpack(archive, draft)
        _check(system, program(pythons, draft.name, request.python), request.release)
        remove(draft / tree.RECORD)
        write_atomic(draft / tree.RECORD, tree.describe(draft), _FILE_MODE)
        sync_filesystem(pythons)
        old = pythons / f"{TRASH}{final.name}"
        if os.path.lexists(final):  # files of it were changed
            final.rename(old)
        draft.rename(final)  # at once: slots may import from it
        sync_directory(pythons)
        remove(old)
    finally:
        remove(draft)


def _check(system: System, python: Path, release: str) -> None:
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise _refused(f"it has no program {'/'.join(python.parts[-2:])}")
    argv = [str(python), "-I", "-S", "-B", "-c", _TELL]
    completed = sandboxed(system, argv, timeout_s=_RUN_S, writable=[])
    said = one_line(completed.stdout)
    if completed.returncode != 0 or said != release:
        why = one_line(completed.stderr) or said or f"exit status {completed.returncode}"
        raise _refused(f"it should be Python {release}, and says {why}")


def unpack(archive: Path, target: Path) -> None:
    """
    Unpack *archive* into the new directory *target*: plain files, directories, and links in it.

    All of it belongs to this user, and no file has rights beyond 0755.

    Raises:
        HostError: An entry would be outside of the tree, or is none of these.
    """
    import tarfile  # only here: a staging that imports this module need not wait for it

    target.mkdir()
    target.chmod(_DIRECTORY_MODE)
    count = size = 0
    try:
        with (
            os.fdopen(open_plain(archive), "rb") as file,
            tarfile.open(fileobj=file, mode="r|gz") as members,
        ):
            for member in members:
                count, size = count + 1, size + _size_of(member, target)
                if count > ENTRIES_MAX or size > UNPACKED_MAX:
                    raise _refused("it has too many files, or too large ones")
                _unpack_one(members, member, target)
    except (tarfile.TarError, EOFError, zlib.error, FileExistsError, ValueError) as error:
        raise _refused(one_line(str(error)) or type(error).__name__) from None


def _size_of(member: tarfile.TarInfo, target: Path) -> int:
    """
    Return the bytes that *member* takes in *target*; a second name is a copy.
    """
    if not member.islnk():
        return max(0, member.size)
    name = _inside(member.linkname)
    try:
        return (target / name).lstat().st_size if name is not None else 0
    except OSError:
        return 0  # refused by `_copy_of`


def _unpack_one(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    name = _inside(member.name)
    if name is None:
        raise _refused(f"the name {member.name[:200]!r} is not below {_TOP}/")
    path = target / name
    if member.isdir():
        _directory(target, name)
        return
    _directory(target, name.parent)
    if member.issym():
        _link(path, name, member.linkname)
    elif member.islnk():
        _copy_of(path, target, member)
    elif member.isreg():
        source = members.extractfile(member)
        assert source is not None
        with source:
            _write(path, member.mode, iter(lambda: source.read(_CHUNK), b""))
    else:
        raise _refused(f"{member.name[:200]!r} is a device or a pipe")


def _inside(name: str) -> PurePosixPath | None:
    """
    Return *name* without the directory that everything is in; None if it leads out of it.
    """
    parts = [part for part in name.split("/") if part != "."]
    if parts and parts[-1] == "":
        parts.pop()  # "python/bin/"
    if not parts or parts[0] != _TOP or any(part in ("", "..") for part in parts):
        return None
    return PurePosixPath(*parts[1:])


def _directory(target: Path, name: PurePosixPath) -> None:
    """
    Make the directory *name* in *target*; a link on the way is refused.
    """
    path = target
    for part in name.parts:
        path = path / part
        try:
            path.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise _refused(f"{str(name)[:200]!r} goes through a link or a file") from None
        else:
            path.chmod(_DIRECTORY_MODE)


def _link(path: Path, name: PurePosixPath, to: str) -> None:
    parts = to.split("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    # Only leading "..": what follows could go through another link.
    if not to or to.startswith("/") or ups > len(name.parts) - 1 or ".." in parts[ups:]:
        raise _refused(f"{str(name)[:200]!r} is a link to {to[:200]!r}, out of the tree")
    path.symlink_to(to)


def _copy_of(path: Path, target: Path, member: tarfile.TarInfo) -> None:
    """
    Write a second name of an unpacked file as a file of its own.
    """
    name = _inside(member.linkname)
    if name is None:
        raise _refused(f"{member.name[:200]!r} is a second name of {member.linkname[:200]!r}")
    _directory(target, name.parent)
    try:
        descriptor = open_plain(target / name)
    except OSError as error:
        raise _refused(f"{member.linkname[:200]!r}, of a second name: {error}") from None
    with os.fdopen(descriptor, "rb") as source:
        mode = os.fstat(source.fileno()).st_mode
        _write(path, mode, iter(lambda: source.read(_CHUNK), b""))


def _write(path: Path, mode: int, chunks: Iterator[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, _FILE_MODE), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        os.fchmod(file.fileno(), _PROGRAM_MODE if mode & 0o111 else _FILE_MODE)


def _refused(why: str) -> HostError:
    return HostError(
        ErrorKind.BUNDLE_TAMPERED,
        "the archive of a standalone Python is refused",
        why,
        "nothing was placed; name another archive in mirrors.python.archives",
    )
