"""
The journal of a host: append-only, one JSON object a line, on disk before the effect.

Each effect has an intent before it and a result after it; an intent without a result is a crash.
A full file is kept in the archive, and a new one begins with a checkpoint, so that reading the
state costs the same however much has happened.  Each line has the SHA-256 of the one before it.
The line format is documented in docs/reference/journal.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from deploy.host import archives, reserve
from deploy.host.codec import encode
from deploy.host.files import sync_directory
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.records import (
    ZERO,
    Checkpoint,
    Intent,
    Record,
    Result,
    bounded,
    digest_of,
    from_line,
    to_line,
)
from deploy.host.replay import Replayed, carried, replay
from deploy.host.system import System, utc
from deploy.host.trusted_files import Untrusted, open_regular, read_plain

ROTATE_BYTES = 64 << 10  # of lines after the checkpoint, about 180
ROTATE_FREE_BYTES = 16 << 20  # free space below which the file is not changed for a new one
_ACTOR = "slipway-host"  # writes checkpoints
_TEXT_MAX = 1000  # characters of a release, actor or step
_WINDOW = 1 << 16
_SIZE_MAX = 256 << 20  # bytes of a file; it is changed for a new one long before

RecordT = TypeVar("RecordT", bound=Record)


class _Tail(NamedTuple):
    """
    Attributes:
        end: Size of the file without a torn line.
        line: The last line; None in an empty file.
        record: Of that line; None if it is damaged.
    """

    end: int
    line: bytes | None
    record: Record | None


class Journal:
    """
    The journal file.  Callers of `append` hold the host's lock.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._path = system.layout.journal
        self._archives = system.layout.journal_archives

    def read(self) -> tuple[list[Record], int]:
        """
        Return the records since the last checkpoint, that included, and the number of lines that
        cannot be read, since ever.

        An unfinished last line is ignored: the host died while it was written.
        """
        found: list[Record | None]
        try:
            found = _parsed(read_plain(self._path, _SIZE_MAX))
        except FileNotFoundError:
            found = []
        except Untrusted:
            found = [None]  # a directory or a pipe is in its place
        if not found or found[0] is None:
            # The checkpoint is damaged, or the file is lost: the one before has a state.
            found = _parsed(archives.newest(self._path, self._archives)) + found
        records = [record for record in found if record is not None]
        damaged = len(found) - len(records)
        # The last one counts those before it as well.
        for number, record in enumerate(found):
            if isinstance(record, Checkpoint):
                damaged = record.carried.damaged + found[number:].count(None)
        return records, damaged

    def replay(self) -> Replayed:
        return replay(self.read()[0])

    def lines(self, after_seq: int = 0) -> Iterator[tuple[int, bytes]]:
        """
        Yield each line that is kept and comes after number *after_seq*, with its number.

        Numbers do not fall: a line that is damaged, or out of order, has that of the line before.
        """
        number = 1
        for content in archives.contents(self._path, self._archives, after_seq):
            for line in whole_lines(content):
                record = from_line(line)
                number = max(number, record.seq if record is not None else 0)
                if number > after_seq:
                    yield number, line

    def append(self, record: RecordT) -> RecordT:
        """
        Write *record* with number, time, boot id and hash; return it once it is on disk.
        """
        record = _bounded(record)
        descriptor, tail = self._open()
        try:
            if self._is_due(descriptor, tail) and self._rotate(tail):
                os.close(descriptor)
                descriptor, tail = self._open()
            whole = self._numbered(record, tail)
            data = to_line(whole) + b"\n"
            reserve.with_room(self._system, lambda: _write_whole(descriptor, tail.end, data))
            reserve.allocate_ahead(descriptor, tail.end + len(data))
        finally:
            os.close(descriptor)
        if tail.line is None or isinstance(tail.record, Checkpoint):
            sync_directory(self._path.parent)  # the file is new
        return whole

    def _open(self) -> tuple[int, _Tail]:
        descriptor = reserve.with_room(
            self._system, lambda: open_regular(self._path, os.O_RDWR | os.O_CREAT, 0o640)
        )
        try:
            end = _drop_torn_line(descriptor)
            line = _last_line(descriptor, end) if end else None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, _Tail(end, line, from_line(line) if line is not None else None)

    def _is_due(self, descriptor: int, tail: _Tail) -> bool:
        """
        Return whether the file is full, or of the format before lines were chained.
        """
        is_former = tail.record is not None and tail.record.prev is None
        if not is_former and tail.end < ROTATE_BYTES:
            return False
        if not is_former and tail.end - _size_of_first_line(descriptor) < ROTATE_BYTES:
            return False
        return self._system.free_bytes(self._path.parent) >= ROTATE_FREE_BYTES

    def _rotate(self, tail: _Tail) -> bool:
        try:
            records, damaged = self.read()
        except OSError:
            return False
        checkpoint = self._numbered(Checkpoint(_ACTOR, carried(records, damaged)), tail)
        line = to_line(checkpoint)
        if from_line(line) != checkpoint:
            return False  # never a state that the next call could not read
        first_seq = records[0].seq if records else 0
        return archives.rotate(self._path, self._archives, first_seq, tail.end, line)

    def _numbered(self, record: RecordT, tail: _Tail) -> RecordT:
        last_seq = tail.record.seq if tail.record is not None else self.replay().seq
        fields = {name: getattr(record, name) for name in type(record).__annotations__}
        fields |= {
            "seq": last_seq + 1,
            "at": utc(self._system.wall_s()),
            "boot_id": self._system.boot_id(),
            "prev": ZERO if tail.line is None else digest_of(tail.line),
        }
        return type(record)(**fields)


def _parsed(content: bytes) -> list[Record | None]:
    return [from_line(line) for line in whole_lines(content)]


def whole_lines(content: bytes) -> list[bytes]:
    r"""
    Return the lines of *content* that have their end.

    Only "\n" ends a line.
    """
    return content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]


def result_of(
    announced: Intent, *, error: HostError | None = None, result: object = None
) -> Result:
    """
    Return the result of the appended intent *announced*; it is good without *error*.
    """
    return Result(
        announced.release,
        announced.fence,
        announced.actor,
        announced.step,
        announced.args,
        ok=error is None,
        intent=announced.seq,
        error=error.as_json() if error is not None else None,
        result=encode(result),
    )


def _bounded(record: RecordT) -> RecordT:
    """
    Return *record* short enough for one line.

    Raises:
        HostError: A name is too long.
    """
    fields = {name: getattr(record, name) for name in type(record).__annotations__}
    for name in ("release", "actor", "step"):
        if len(fields.get(name) or "") > _TEXT_MAX:
            raise HostError(
                ErrorKind.USAGE,
                f"the name of a {name} is too long for the journal",
                f"it has {len(fields[name])} characters, at most {_TEXT_MAX} are written",
                "use a shorter one",
            )
    for name in ("args", "error", "result"):
        if isinstance(fields.get(name), dict):
            fields[name] = bounded(fields[name])
        elif fields.get(name) is not None:
            fields[name] = bounded({name: fields[name]})[name]
    return type(record)(**fields)


def _drop_torn_line(descriptor: int) -> int:
    """
    Cut off an unfinished last line, and return the size of the rest.
    """
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _WINDOW)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    return end


def _last_line(descriptor: int, end: int) -> bytes:
    """
    Return the line that ends at *end*, without its end.
    """
    start, tail = end, b""
    while start > 0 and tail.count(b"\n") < 2:
        begin = max(0, start - _WINDOW)
        tail = os.pread(descriptor, start - begin, begin) + tail
        start = begin
    return tail[:-1].rpartition(b"\n")[2]


def _size_of_first_line(descriptor: int) -> int:
    at = 0
    while part := os.pread(descriptor, _WINDOW, at):
        newline = part.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += len(part)
    return at


def _write_whole(descriptor: int, end: int, line: bytes) -> None:
    written = 0
    try:
        while written < len(line):
            written += os.pwrite(descriptor, line[written:], end + written)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
