"""
Files that the journal was before: each began with a checkpoint and was full.

    journal.d/000000000001.jsonl, 000000000180.jsonl, ...   named by their first line
    journal.jsonl                                           the journal; begins with a checkpoint

The file moves in two steps: it gets its second name, then a draft takes its first one.  A crash
leaves the journal under both names, or the new file under the first: no line is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from deploy.host.files import UNFINISHED, sync_directory
from deploy.host.reserve import AHEAD_BYTES, allocate
from deploy.host.trusted_files import open_plain, read_plain

ARCHIVES_MAX = 128  # files
ARCHIVES_BYTES = 32 << 20
_SIZE_MAX = 256 << 20  # bytes of one that is read
_NAME = re.compile(r"(\d{12,})(?:-(\d+))?\.jsonl")


def rotate(journal: Path, archives: Path, first_seq: int, end: int, line: bytes) -> bool:
    """
    Let *journal* begin anew with *line*, and keep the file so far in *archives*.

    The caller holds the host's lock, and syncs the directory of *journal* after its next line.

    Args:
        end: Size of *journal*.

    Returns:
        False, with *journal* as it was, where the system refused: a full disk for example.
    """
    draft = journal.with_name(f"{UNFINISHED}{journal.name}")
    try:
        if not archives.is_dir():
            archives.mkdir(mode=0o750)
            sync_directory(archives.parent)
        _write(draft, line + b"\n")
        kept = _keep(journal, archives, first_seq)
        sync_directory(archives)
        draft.replace(journal)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        return False
    with contextlib.suppress(OSError):
        os.truncate(kept, end)  # gives back what was allocated beyond
    _prune(archives)
    return True


def files(archives: Path) -> list[tuple[int, Path]]:
    """
    Return the kept files with the numbers of their first lines, oldest first.
    """
    try:
        names = [path.name for path in archives.iterdir()]
    except OSError:
        return []
    found = [(match, name) for name in names if (match := _NAME.fullmatch(name))]
    ordered = sorted((int(match[1]), int(match[2] or 0), name) for match, name in found)
    return [(first_seq, archives / name) for first_seq, _, name in ordered]


def newest(journal: Path, archives: Path) -> bytes:
    """
    Return the content of the file that *journal* was before; empty without one.
    """
    for _, path in reversed(files(archives)):
        try:
            if not (journal.exists() and path.samefile(journal)):
                return read_plain(path, _SIZE_MAX)
        except OSError:
            continue  # pruned
    return b""


def contents(journal: Path, archives: Path, after_seq: int = 0) -> Iterator[bytes]:
    """
    Yield the content of every file that may have lines after *after_seq*, oldest first.

    Needs no lock: the journal is opened first, and may meanwhile become one of the kept files.
    """
    try:
        descriptor = open_plain(journal)
    except FileNotFoundError:
        descriptor = None
    try:
        own = os.fstat(descriptor) if descriptor is not None else None
        kept = files(archives)
        for number, (_, path) in enumerate(kept):
            if number + 1 < len(kept) and kept[number + 1][0] <= after_seq:
                continue  # all of its lines are before
            try:
                if own is not None and os.path.samestat(own, path.stat()):
                    break  # the journal was kept meanwhile: what follows came later
                content = read_plain(path, _SIZE_MAX)
            except OSError:
                continue  # pruned
            yield content
        if descriptor is not None:
            yield _read(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _write(draft: Path, data: bytes) -> None:
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], written)
        allocate(descriptor, len(data), AHEAD_BYTES)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep(journal: Path, archives: Path, first_seq: int) -> Path:
    """
    Give *journal* its name in *archives*, which it may have since a crash.
    """
    for number in count():
        kept = archives / f"{first_seq:012d}{f'-{number}' if number else ''}.jsonl"
        try:
            os.link(journal, kept)
        except FileExistsError:
            if not kept.samefile(journal):
                continue  # of a journal that was deleted: it stays
        return kept
    raise AssertionError("unreachable")


def _prune(archives: Path) -> None:
    """
    Delete the oldest files beyond the bounds; the newest always stays.
    """
    with contextlib.suppress(OSError):
        newest_first = [path for _, path in reversed(files(archives))]
        total = 0
        for number, path in enumerate(newest_first):
            total += path.stat().st_size
            if number and (number >= ARCHIVES_MAX or total > ARCHIVES_BYTES):
                path.unlink()


def _read(descriptor: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(descriptor, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
