"""
The files of the host's own way back: what is pending, what was confirmed, what was taken back.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from deploy.host.files import remove, sync_directory
from deploy.host.journal import Journal
from deploy.host.layout import SLOTS
from deploy.host.lease import Leases
from deploy.host.protocol import (
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    ErrorKind,
    HostError,
    Pending,
    WentBack,
)
from deploy.host.records import ZERO, Event, Result, digest_of, from_line
from deploy.host.reserve import with_room, write_spare
from deploy.host.system import System, utc
from deploy.host.trusted_files import read_plain

STUCK_S = 300.0  # a way back takes seconds, one with a slot that loads slowly a few minutes
GO_BACK = "deadman.go_back"  # step of the journal: the host went back by itself
REPAIR = "deadman.repair"  # event: a damaged file was written again, or put aside
_ACTOR = "deadman"
_ARM = DeadmanArm.VERB
_ENDS = (DeadmanConfirm.VERB, DeadmanDisarm.VERB, GO_BACK)
_ASIDE = ".damaged"  # after the name of a file that was put aside
_SIZE_MAX = 1 << 16
_WHY_LOST = "the host went back by itself; the reason could not be written"


class Way(NamedTuple):
    """
    Content of pending.json: a change, and how it is taken back.

    Attributes:
        from_slot: Slot that gets all the traffic; None: nothing served before the change.
        boot_id: Boot in which the change was begun.
        at: UTC, when going back began; None before.
        why: Why it began.
    """

    release: str
    epoch: int
    to_slot: str
    from_slot: str | None
    boot_id: str
    at: str | None = None
    why: str | None = None

    def is_same(self, other: Way | None) -> bool:
        """
        Return whether *other* is the same change, gone back from or not.
        """
        return other is not None and other[:5] == self[:5]


def read(system: System) -> Way | None:
    """
    Return what is pending; None without anything, or where the file is damaged.
    """
    return parse(_document(system.layout.pending))


def is_damaged(system: System) -> bool:
    """
    Return whether something is in the place of the file that does not say what is pending.
    """
    try:  # one look: the file may be replaced or renamed at any time
        content = read_plain(system.layout.pending, _SIZE_MAX)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return parse(_json(content)) is None


def repair(system: System) -> str:
    """
    Write a damaged file anew as the journal has it; return what was done, in words.

    Where the journal is whole and has nothing pending, the damaged one is put aside: each change
    is in the journal before its first effect.  What was done is in the journal too.  The caller
    holds the host's lock.

    Raises:
        HostError: The journal does not tell either.
        OSError: The file cannot be replaced.
    """
    path = system.layout.pending
    if not is_damaged(system):
        return ""
    way = _journaled(system)
    if way is not None:
        write(system, way)
        _note_repair(system, {"done": "written again", "release": way.release})
        return f"{path} was damaged: written again as the journal has it"
    put_aside(system)
    return f"{path} was damaged: put aside as {path.name}{_ASIDE}, the journal has nothing pending"


def end(system: System, path: Path) -> None:
    """
    Give what is pending the name *path*, in one step; the caller holds the host's lock.
    """
    if path.is_dir() and not path.is_symlink():  # it would stop the way back for ever
        remove(path)
    system.layout.pending.replace(path)
    sync_directory(system.layout.state)


def forget_end(system: System, way: Way) -> None:
    """
    Delete what says that *way* was confirmed or taken back: it is begun again, and a repair would
    take it for the one that is over.  The caller holds the host's lock.
    """
    for path in (system.layout.confirmed, system.layout.went_back):
        if way.is_same(parse(_document(path))):
            remove(path)
            sync_directory(system.layout.state)


def put_aside(system: System) -> None:
    """
    Rename what is in the place of the file; the caller holds the host's lock.
    """
    path, aside = system.layout.pending, _aside(system)
    remove(aside)
    path.rename(aside)
    _note_repair(system, {"done": "put aside", "as": aside.name})


def is_put_aside(system: System) -> bool:
    """
    Return whether a damaged file was put aside, and is still there for somebody to look at.
    """
    return os.path.lexists(_aside(system))


def _aside(system: System) -> Path:
    path = system.layout.pending
    return path.with_name(f"{path.name}{_ASIDE}")


def _note_repair(system: System, args: dict[str, Any]) -> None:
    """
    Write it into the journal, if that can be written: it never stops the way back.
    """
    with contextlib.suppress(Exception):
        Journal(system).append(Event(None, None, _ACTOR, REPAIR, args))


def _journaled(system: System) -> Way | None:
    """
    Return what is pending by the journal.

    Raises:
        HostError: Lines of it that may say more are damaged or missing.
    """
    last: Event | Result | None = None
    is_whole, seq, digest = True, 0, ZERO
    for _, line in Journal(system).lines():
        record = from_line(line)
        if record is None:
            is_whole = False
        elif isinstance(record, (Event, Result)) and record.step in (_ARM, *_ENDS):
            last, is_whole = record, True  # what was before it does not matter
        elif (record.seq, record.prev) != (seq + 1, digest):
            is_whole = False
        if record is not None:
            seq = record.seq
        digest = digest_of(line)
    # An empty journal says nothing; one that lacks its last lines is older than the lease.
    is_newest = Journal(system).replay().fence >= Leases(system).last_fence()
    is_whole = is_whole and seq > 0 and is_newest
    way = parse(last.args) if last is not None and last.step == _ARM else None
    if not is_whole or (way is None and last is not None and last.step == _ARM):
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"{system.layout.pending} is damaged",
            "neither it nor the journal, of which lines are damaged or missing too, says what the "
            "host is to take back",
            "inv status, then inv rollback; if the host serves what it should, remove the file",
        )
    # These files change places before the journal says so.
    is_over = way is not None and (
        way.is_same(confirmed(system)) or way.is_same(parse(_document(system.layout.went_back)))
    )
    return None if is_over else way


def parse(document: Any) -> Way | None:
    """
    Return the way in *document*, of any type; None if it is none.
    """
    try:
        way = Way(**document)
    except TypeError:
        return None
    texts = (way.release, way.to_slot, way.boot_id, way.at or "", way.why or "")
    is_way = all(isinstance(text, str) for text in texts) and _is_epoch(way.epoch)
    is_way = is_way and way.to_slot in SLOTS and way.from_slot in (*SLOTS, None)
    return way if is_way and way.to_slot != way.from_slot else None


def write(system: System, way: Way) -> None:
    """
    Write *way* to disk; the caller holds the host's lock.
    """
    data = json.dumps(way._asdict()).encode()
    with_room(system, lambda: write_spare(system.layout.pending, data, 0o640))


def why_due(system: System, way: Way) -> str | None:
    """
    Return why *way* is to be gone now; None while its operator has time to confirm it.
    """
    if way.boot_id != system.boot_id():
        return "the host was rebooted before the change was confirmed"
    if Leases(system).in_force() is None:
        return "no lease was in force any more before the change was confirmed"
    return None


def is_stuck(system: System, way: Way) -> bool:
    """
    Return whether *way* was due for longer than it takes, or nothing can go it.
    """
    if not system.layout.host_program.is_file():
        return True
    if way.boot_id != system.boot_id():
        return system.steady_s() > STUCK_S
    return Leases(system).ended_s() > STUCK_S


def status(system: System) -> Pending | None:
    """
    Return what is pending, as `status` reports it.
    """
    way = read(system)
    if way is None:
        return None
    lease = Leases(system).in_force()
    left_s = Leases(system).left_s(lease) if lease and not why_due(system, way) else 0.0
    stuck = is_stuck(system, way)
    return Pending(way.release, way.epoch, way.to_slot, way.from_slot, left_s, stuck)


def went_back(system: System) -> WentBack | None:
    """
    Return what the host took back by itself, as `status` reports it.
    """
    path = system.layout.went_back
    way = parse(_document(path))
    if way is None:
        return None
    try:
        at = way.at or utc(path.stat().st_mtime)
    except OSError:
        return None
    return WentBack(way.release, way.epoch, at, way.why or _WHY_LOST)


def confirmed(system: System) -> Way | None:
    """
    Return the last change that was confirmed.
    """
    return parse(_document(system.layout.confirmed))


def _document(path: Path) -> Any:
    try:
        return _json(read_plain(path, _SIZE_MAX))
    except OSError:
        return None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _is_epoch(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53
