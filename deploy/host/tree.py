"""
Records the files of a directory tree, and later finds those that are no longer as recorded.

A file counts as unchanged while its size and both of its times are; others are hashed.  The time of
the last change of state (ctime) cannot be set, so a file that was written to never passes.

Headers of C and C++, half of the files of torch, are looked at by name and type alone unless
something else is altered or the look is deep: only compilers read them, and each file costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import IO, NamedTuple

# An entry is a text: type and mode, user and group id; of a file its size, and after a slash the
# times of the last write and of the last change of state in nanoseconds; of a link its target.
HEADERS = (".h", ".hpp", ".cuh")
# In the tree, and no part of it.
RECORD = ".files"
UNCOMPARED = ".uncompared"  # torch has not computed on all GPUs: `torch_mark`
_CHUNK = 1 << 20
_RECORD_MAX = 256 << 20  # bytes
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Altered(NamedTuple):
    """
    Attributes:
        is_recorded: The tree has a record that can be read.
        names: Files that are not as recorded, sorted.
    """

    is_recorded: bool
    names: tuple[str, ...]


def describe(tree: Path) -> bytes:
    """
    Return the record of *tree* as it is now: a stamp of all entries, then each with its hash.
    """
    entries = _entries(tree)
    lines = [_stamp(_entries(tree, is_fast=True))]
    for name, entry in sorted(entries.items()):
        sha256 = _sha256(tree / name) if _is_file(entry) else ""
        lines.append(json.dumps([name, entry, sha256]))
    return "".join(f"{line}\n" for line in lines).encode()


def compare(tree: Path, *, deep: bool) -> Altered:
    """
    Return what is altered in *tree* since `describe`.

    Args:
        deep: Hash every file.

    Raises:
        OSError: A file cannot be read.
    """
    try:
        file = _open(tree / RECORD)
    except OSError:
        return Altered(is_recorded=False, names=())
    try:
        with file:
            stamp = file.readline().decode("ascii", "replace").strip()
            if not deep and stamp == _stamp(_entries(tree, is_fast=True)):
                return Altered(is_recorded=True, names=())
            recorded, entries = _parse(file.read(_RECORD_MAX)), _entries(tree)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
        return Altered(is_recorded=False, names=())
    names = {*entries} ^ {*recorded}
    for name, entry in entries.items():
        if name not in names and _is_altered(tree / name, entry, *recorded[name], deep=deep):
            names.add(name)
    return Altered(is_recorded=True, names=tuple(sorted(names)))


def _is_altered(path: Path, found: str, recorded: str, sha256: str, *, deep: bool) -> bool:
    if not (_is_file(found) and _is_file(recorded)):
        return found != recorded
    if found.partition("/")[0] != recorded.partition("/")[0]:
        return True
    return (deep or found != recorded) and _sha256(path) != sha256


def _is_file(entry: str) -> bool:
    return entry.startswith("10")  # S_IFREG in octal


def _entries(tree: Path, *, is_fast: bool = False) -> dict[str, str]:
    """
    Return the entry of everything below *tree* by its name, except for the record and the mark.

    Args:
        is_fast: Of headers the entry is empty.
    """
    entries: dict[str, str] = {}
    directories = [("", str(tree))]
    while directories:
        prefix, directory = directories.pop()
        # By descriptor: the kernel looks up one name a file, not the whole path.
        descriptor = os.open(directory, _FLAGS)
        try:
            with os.scandir(descriptor) as items:
                for item in items:
                    name = prefix + item.name
                    if is_fast and name.endswith(HEADERS) and item.is_file(follow_symlinks=False):
                        entries[name] = ""
                        continue
                    s = item.stat(follow_symlinks=False)
                    entry = f"{s.st_mode:06o} {s.st_uid} {s.st_gid}"
                    if stat.S_ISREG(s.st_mode):
                        entry = f"{entry} {s.st_size}/{s.st_mtime_ns} {s.st_ctime_ns}"
                    elif stat.S_ISDIR(s.st_mode):
                        directories.append((f"{name}/", f"{directory}/{item.name}"))
                    elif stat.S_ISLNK(s.st_mode):
                        entry = f"{entry} {os.readlink(item.name, dir_fd=descriptor)}"
                    entries[name] = entry
        finally:
            os.close(descriptor)
    entries.pop(RECORD, None)
    entries.pop(UNCOMPARED, None)
    return entries


def _stamp(entries: dict[str, str]) -> str:
    lines = sorted(f"{name}\0{entry}" for name, entry in entries.items())
    return hashlib.sha256("\0".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _parse(text: bytes) -> dict[str, tuple[str, str]]:
    recorded = {}
    for line in text.splitlines():
        name, entry, sha256 = map(str, json.loads(line))
        recorded[name] = (entry, sha256)
    return recorded


def _open(path: Path) -> IO[bytes]:
    # All of the tree belongs to root: only a link in place of a file must not be followed.
    return os.fdopen(os.open(path, _FILE), "rb")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with _open(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
