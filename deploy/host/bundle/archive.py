"""
The archive of a bundle: its files one after the other, in the ustar format, and nothing else.

There is one way to write it, so that every byte of it is checked: `tar tf` can list it, but what
any other program writes is another archive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from deploy.host.bundle.manifest import ARCHIVE, Blob
from deploy.host.bundle.verify import check_size, tampered

_BLOCK = 512
_RECORD = 20 * _BLOCK


def header(blob: Blob) -> bytes:
    """
    Return the block before the contents of *blob*: a plain file of user and group 0, from 1970.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    fields = (
        (blob.path.encode(), 100),
        (b"%07o" % int(blob.mode, 8), 8),
        (b"%07o" % 0, 8),  # user
        (b"%07o" % 0, 8),  # group
        (b"%011o" % blob.size, 12),
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
    Return what stands between contents of *size* bytes and the next header.
    """
    return b"\0" * (-size % _BLOCK)


def trailer(files: Iterable[Blob]) -> bytes:
    """
    Return the end of the archive of *files*.
    """
    blocks = sum(_BLOCK + blob.size + len(padding(blob.size)) for blob in files)
    return b"\0" * (2 * _BLOCK + -(blocks + 2 * _BLOCK) % _RECORD)


def archive_size(files: Iterable[Blob]) -> int:
    """
    Return the size of the archive of *files*, in bytes.
    """
    files = tuple(files)
    blocks = sum(_BLOCK + blob.size + len(padding(blob.size)) for blob in files)
    return blocks + len(trailer(files))


def check_archive(path: Path, files: tuple[Blob, ...]) -> None:
    """
    Hold every byte of the archive at *path* against what was signed, without writing anything.

    Raises:
        HostError: It is short (BundleTruncated), or holds anything else (BundleTampered).
    """
    for _ in _contents(path, files):
        pass


def read_one(path: Path, files: tuple[Blob, ...], wanted: str) -> bytes:
    """
    Return the contents of the file *wanted* in the archive at *path*, all of which is checked.
    """
    return {blob.path: data for blob, data in _contents(path, files)}[wanted]


def unpack(path: Path, files: tuple[Blob, ...], target: Path) -> None:
    """
    Write the archive at *path* into the new directory *target*, checked once more on its way.
    """
    for blob, data in _contents(path, files):
        path_in_target = target / blob.path
        path_in_target.parent.mkdir(parents=True, exist_ok=True)
        with path_in_target.open("xb") as file:
            file.write(data)
        path_in_target.chmod(int(blob.mode, 8))


def _contents(path: Path, files: tuple[Blob, ...]) -> Iterator[tuple[Blob, bytes]]:
    check_size(path, Blob(ARCHIVE, "", archive_size(files)))
    with path.open("rb") as archive:
        for blob in files:
            _expect(archive, header(blob), f"the header of {blob.path}")
            data = archive.read(blob.size)
            if hashlib.sha256(data).hexdigest() != blob.sha256:
                raise tampered(blob.path, "its contents are not those that were signed")
            _expect(archive, padding(blob.size), f"what follows {blob.path}")
            yield blob, data
        _expect(archive, trailer(files), "its end")


def _expect(archive: IO[bytes], wanted: bytes, what: str) -> None:
    if archive.read(len(wanted)) != wanted:
        raise tampered(ARCHIVE, f"{what} is not as the manifest has it")
