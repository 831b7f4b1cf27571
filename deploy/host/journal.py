"""
The journal of a host: append-only, one JSON object a line, on disk before the effect.

Each effect has an intent before it and a result after it; an intent without a result is a crash.
The line format is documented in docs/reference/journal.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from deploy.host import reserve
from deploy.host.files import sync_directory
from deploy.host.protocol import GoodRecord, GoodRelease, GoodRollback, LeaseAcquire, Unfinished
from deploy.host.system import System, utc

INTENT, RESULT, EVENT = "intent", "result", "event"
BEGIN, END = "release.begin", "release.end"
GOOD_RECORD, GOOD_ROLLBACK = GoodRecord.VERB, GoodRollback.VERB
LEASE_ACQUIRE = LeaseAcquire.VERB
_OUTCOME_PAUSED, _OUTCOME_FAILED = "paused", "failed"
_TAIL = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Replayed(NamedTuple):
    """
    State that the lines of a journal add up to.

    Attributes:
        good: Releases recorded as good and not rolled back, oldest first.
        unfinished: The latest release or verb that began and has not ended.
        paused: Release that waits for a decision of the operator.
        seq: Number of the last line.
        fence: Highest fencing number of any line.
        epoch: Newest epoch that a lease was granted for.
    """

    good: list[GoodRelease]
    unfinished: Unfinished | None
    paused: str | None
    seq: int
    fence: int
    epoch: int = 0


def replay(entries: Iterable[dict[str, Any]]) -> Replayed:
    """
    Return the state after *entries*.  Pure.

    A result ends every earlier intent of the same step with the same arguments, so that a verb
    that was killed and run again is finished.  The end of a release ends all open intents, and
    a new release takes over the intents that an earlier one left open: one lease, one writer.
    A way back that failed has not ended: the next one goes on with it.
    """
    good: list[GoodRelease] = []
    open_intents: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] | None = None
    paused: str | None = None
    seq = fence = epoch = 0
    for entry in entries:
        seq = max(seq, entry.get("seq") or 0)
        fence = max(fence, entry.get("fence") or 0)
        step, phase = entry.get("step"), entry.get("phase")
        epoch = max(epoch, _epoch(entry))
        if phase == INTENT:
            open_intents[_key(entry)] = entry
        elif phase == RESULT:
            open_intents.pop(_key(entry), None)
            if entry.get("ok"):
                good = _good_after(good, entry)
        elif step == BEGIN:
            begun = {"epoch": epoch, **(entry.get("args") or {})}
            current, paused = {**entry, "args": begun}, None
        elif step == END and (current is None or current.get("release") == entry.get("release")):
            outcome = (entry.get("args") or {}).get("outcome")
            paused = entry.get("release") if outcome == _OUTCOME_PAUSED else None
            current = current if outcome == _OUTCOME_FAILED else None
            open_intents.clear()
        if current is not None and entry.get("release") == current.get("release"):
            current = {**current, "step": step}
    return Replayed(good, _unfinished(current, open_intents), paused, seq, fence, epoch)


def _epoch(entry: dict[str, Any]) -> int:
    return _epoch_of(entry.get("args") or {}) if entry.get("step") == LEASE_ACQUIRE else 0


def _epoch_of(args: dict[str, Any]) -> int:
    epoch = args.get("epoch")
    return epoch if isinstance(epoch, int) and epoch >= 0 else 0


def _good_after(good: list[GoodRelease], entry: dict[str, Any]) -> list[GoodRelease]:
    args = entry.get("args") or {}
    if entry.get("step") == GOOD_RECORD:
        release, bundle, version = entry.get("release"), args.get("bundle"), args.get("version")
        if not (isinstance(release, str) and isinstance(bundle, str) and isinstance(version, str)):
            return good  # damaged
        new = GoodRelease(release, bundle, version)
        if good and (good[-1].release, good[-1].bundle) == (new.release, new.bundle):
            return good  # recorded twice
        return [*good, new]
    if entry.get("step") == GOOD_ROLLBACK:
        release, bundle, version = (args.get(key) for key in ("to_release", "bundle", "version"))
        positions = [i for i, g in enumerate(good) if g.release == release]
        if positions:
            return good[: positions[-1] + 1]
        if isinstance(release, str) and isinstance(bundle, str) and isinstance(version, str):
            return [GoodRelease(release, bundle, version)]
    return good


def _unfinished(
    current: dict[str, Any] | None, open_intents: dict[str, dict[str, Any]]
) -> Unfinished | None:
    intents = sorted(open_intents.values(), key=lambda e: e.get("seq") or 0)
    last = intents[-1] if intents else current
    if last is None:
        return None
    release = current["release"] if current else last.get("release")
    begun = (current or {}).get("args") or {}
    return Unfinished(
        release,
        str(last.get("step")),
        _text(begun.get("to_release")) if begun.get("kind") == "rollback" else None,
        _epoch_of(begun),
        bundle if (bundle := _text(begun.get("bundle"))) and _DIGEST.fullmatch(bundle) else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _key(entry: dict[str, Any]) -> str:
    return json.dumps([entry.get("step"), entry.get("args")], sort_keys=True)


class Journal:
    """
    The journal file.  Callers of `append` hold the host's lock.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._path = system.layout.journal

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """
        Return the entries, and the number of lines that cannot be read.

        An unfinished last line is ignored: the host died while it was written.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return [], 0
        entries, damaged = [], 0
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            entry = _parse(line)
            if entry is None:
                damaged += 1
            else:
                entries.append(entry)
        return entries, damaged

    def replay(self) -> Replayed:
        return replay(self.read()[0])

    def append(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Write *entry* with number, time and boot id; return the line once it is on disk.
        """
        is_new = not self._path.exists()
        descriptor = reserve.with_room(
            self._system, lambda: os.open(self._path, os.O_RDWR | os.O_CREAT, 0o640)
        )
        try:
            end = _drop_torn_line(descriptor)
            whole = {
                "seq": self._last_seq(descriptor, end) + 1,
                "at": utc(self._system.wall_s()),
                "boot_id": self._system.boot_id(),
                **entry,
            }
            line = json.dumps(whole, sort_keys=True).encode() + b"\n"
            reserve.with_room(self._system, lambda: _write_whole(descriptor, end, line))
            reserve.allocate_ahead(descriptor, end + len(line))
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(self._path.parent)
        return whole

    def _last_seq(self, descriptor: int, end: int) -> int:
        lines = os.pread(descriptor, _TAIL, max(0, end - _TAIL)).splitlines()
        # The window may start in the middle of its first line.
        for line in reversed(lines[1:] if end > _TAIL else lines):
            entry = _parse(line)
            if entry is not None:
                return int(entry["seq"])
        return self.replay().seq


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and _has_types(entry) else None


def _has_types(entry: dict[str, Any]) -> bool:
    """
    Return whether the fields that `replay` reads are of their types; a damaged line has others.
    """
    texts = ("release", "step", "phase", "at")
    return (
        isinstance(entry.get("seq"), int)
        and isinstance(entry.get("fence"), (int, type(None)))
        and isinstance(entry.get("args"), (dict, type(None)))
        and all(isinstance(entry.get(name), (str, type(None))) for name in texts)
    )


def _drop_torn_line(descriptor: int) -> int:
    """
    Cut off an unfinished last line, and return the size of the rest.
    """
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    return end


def _write_whole(descriptor: int, end: int, line: bytes) -> None:
    written = 0
    try:
        while written < len(line):
            written += os.pwrite(descriptor, line[written:], end + written)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def entry(
    step: str,
    phase: str,
    *,
    release: str | None,
    fence: int | None,
    actor: str,
    args: dict[str, Any],
) -> dict[str, Any]:
    """
    Return a line without number and time; a result line adds ok, error and result.
    """
    return {
        "release": release,
        "fence": fence,
        "actor": actor,
        "step": step,
        "phase": phase,
        "args": args,
        "ok": None,
        "error": None,
        "result": None,
    }
