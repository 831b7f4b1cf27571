"""
The files of the host's own way back: what is pending, what was confirmed, what was taken back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from deploy.host.layout import SLOTS
from deploy.host.lease import Leases
from deploy.host.protocol import Pending, WentBack
from deploy.host.reserve import with_room, write_spare
from deploy.host.system import System, utc

STUCK_S = 300.0  # a way back takes seconds, one with a slot that loads slowly a few minutes
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
        with path.open("rb") as file:
            return json.loads(file.read(_SIZE_MAX))
    except (OSError, ValueError, RecursionError):
        return None


def _is_epoch(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53
