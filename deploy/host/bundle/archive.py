"""
The archive of a bundle: its files one after the other, in the ustar format.

Every byte of it follows from the manifest and is checked: `tar tf` can list it, but an archive
that another program writes is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from deploy.host.bundle.manifest import ARCHIVE, ArchivedFile
from deploy.host.bundle.verify import check_size, tampered
from deploy.host.trusted_files import open_plain

_BLOCK = 512
_RECORD = 20 * _BLOCK


def header(file: ArchivedFile) -> bytes:
    """
    Return the header block of *file*: a regular file of user and group 0, from 1970.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    fields = (
        (file.path.encode(), 100),
        (b"%07o" % int(file.mode, 8), 8),
        (b"%07o" % 0, 8),  # user
        (b"%07o" % 0, 8),  # group
        (b"%011o" % file.size, 12),
        (b"%011o" % 0, 12),  # time
        (b" " * 8, 8),  # checksum
        (b"0", 1),  # a plain file
        (b"", 100),  # no link
        (b"ustar\x0000", 8),
        (b"", 64),  # no names of user and group
        (b"%07o" % 0, 8),
        (b"%07o" % 0, 8),
        (b"", 167),
    )
    block = b"".join(value.ljust(width, b"\0") for value, width in fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size: int) -> bytes:
    """
    Return the padding after *size* bytes of content.
    """
    return b"\0" * (-size % _BLOCK)


def trailer(files: Iterable[ArchivedFile]) -> bytes:
    """
    Return the end of the archive of *files*.
    """
    blocks = sum(_BLOCK + file.size + len(padding(file.size)) for file in files)
    return b"\0" * (2 * _BLOCK + -(blocks + 2 * _BLOCK) % _RECORD)


def archive_size(files: Iterable[ArchivedFile]) -> int:
    """
    Return the size of the archive of *files*, in bytes.
    """
    files = tuple(files)
    blocks = sum(_BLOCK + file.size + len(padding(file.size)) for file in files)
    return blocks + len(trailer(files))


def list_files(contents: Mapping[str, bytes]) -> tuple[ArchivedFile, ...]:
    """
    Return the manifest's entries for *contents*, bytes by path, sorted by path.
    """
    return tuple(
        ArchivedFile(path, hashlib.sha256(data).hexdigest(), len(data))
        for path, data in sorted(contents.items())
    )


def build_archive(contents: Mapping[str, bytes]) -> bytes:
    """
    Return the archive of *contents*, in the order of `list_files`.
    """
    files = list_files(contents)
    parts = [header(file) + contents[file.path] + padding(file.size) for file in files]
    return b"".join(parts) + trailer(files)


def check_archive(path: Path, files: tuple[ArchivedFile, ...]) -> None:
    """
    Compare every byte of the archive at *path* with the manifest; nothing is written.

    Raises:
        HostError: It is short (BundleTruncated), or differs (BundleTampered).
    """
    for _ in _contents(path, files):
        pass


def read_one(path: Path, files: tuple[ArchivedFile, ...], wanted: str) -> bytes:
    """
    Return the content of the file *wanted*, after checking the whole archive at *path*.
    """
    return {file.path: data for file, data in _contents(path, files)}[wanted]


def unpack(path: Path, files: tuple[ArchivedFile, ...], target: Path) -> None:
    """
    Unpack the archive at *path* into the new directory *target*, checking it again.
    """
    for file, data in _contents(path, files):
        path_in_target = target / file.path
        path_in_target.parent.mkdir(parents=True, exist_ok=True)
        with path_in_target.open("xb") as target_file:
            target_file.write(data)
        path_in_target.chmod(int(file.mode, 8))


def _contents(path: Path, files: tuple[ArchivedFile, ...]) -> Iterator[tuple[ArchivedFile, bytes]]:
    check_size(path, name=ARCHIVE, size=archive_size(files))
    with os.fdopen(open_plain(path), "rb") as archive:
        for file in files:
            _expect(archive, header(file), f"the header of {file.path}")
            data = archive.read(file.size)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise tampered(file.path, "its content is not the signed one")
            _expect(archive, padding(file.size), f"the padding after {file.path}")
            yield file, data
        _expect(archive, trailer(files), "its end")


def _expect(archive: IO[bytes], wanted: bytes, what: str) -> None:
    if archive.read(len(wanted)) != wanted:
        raise tampered(ARCHIVE, f"{what} differs from the manifest")
