"""
Records the files of a directory tree, and later finds those that are no longer as recorded.

A file counts as unchanged while its size and both of its times are; others are hashed.  The time of
the last change of state (ctime) cannot be set, so a file that was written to never passes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deploy.host.trusted_files import Untrusted, open_plain

RECORD = ".files"  # in the tree, and no part of it
_CHUNK = 1 << 20
_RECORD_MAX = 256 << 20  # bytes
_ABSENT = (FileNotFoundError, NotADirectoryError, Untrusted)
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """
    Attributes:
        state: Type and mode, user and group id, size of a file, target of a link.
        times: Of a file: last write and last change of state, in nanoseconds.
    """

    state: str
    times: str

    @property
    def is_file(self) -> bool:
        return bool(self.times)


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
    entries = dict(_entries(tree))
    lines = [_stamp(entries)]
    for name, entry in sorted(entries.items()):
        sha256 = _sha256(tree / name) if entry.is_file else ""
        lines.append(json.dumps([name, *entry, sha256]))
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
        with os.fdopen(open_plain(tree / RECORD), "rb") as file:
            stamp = file.readline().decode("ascii", "replace").strip()
            entries = dict(_entries(tree))
            if stamp == _stamp(entries) and not deep:
                return Altered(is_recorded=True, names=())
            recorded = _parse(file.read(_RECORD_MAX))
    except (*_ABSENT, ValueError, TypeError, RecursionError):
        return Altered(is_recorded=False, names=())
    names = {*entries} ^ {*recorded}
    for name, entry in entries.items():
        if name not in names and _is_altered(tree / name, entry, *recorded[name], deep=deep):
            names.add(name)
    return Altered(is_recorded=True, names=tuple(sorted(names)))


def _is_altered(path: Path, found: Entry, recorded: Entry, sha256: str, *, deep: bool) -> bool:
    if found.state != recorded.state:
        return True
    if not found.is_file or (found.times == recorded.times and not deep):
        return False
    return _sha256(path) != sha256


def _entries(tree: Path) -> Iterator[tuple[str, Entry]]:
    """
    Yield name and entry of everything below *tree*, except for the record.
    """
    directories = [("", str(tree))]
    while directories:
        prefix, directory = directories.pop()
        # By descriptor: the kernel looks up one name a file, not the whole path.
        descriptor = os.open(directory, _FLAGS)
        try:
            with os.scandir(descriptor) as items:
                for item in items:
                    name = prefix + item.name
                    status = item.stat(follow_symlinks=False)
                    state = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
                    if stat.S_ISREG(status.st_mode):
                        if name != RECORD:
                            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                            yield name, Entry(f"{state} {status.st_size}", times)
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        directories.append((f"{name}/", f"{directory}/{item.name}"))
                    elif stat.S_ISLNK(status.st_mode):
                        state += f" {os.readlink(item.name, dir_fd=descriptor)}"
                    yield name, Entry(state, "")
        finally:
            os.close(descriptor)


def _stamp(entries: dict[str, Entry]) -> str:
    text = "\0".join(
        sorted(f"{name}\0{state}\0{times}" for name, (state, times) in entries.items())
    )
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _parse(text: bytes) -> dict[str, tuple[Entry, str]]:
    recorded = {}
    for line in text.splitlines():
        name, state, times, sha256 = map(str, json.loads(line))
        recorded[name] = (Entry(state, times), sha256)
    return recorded


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with os.fdopen(open_plain(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
