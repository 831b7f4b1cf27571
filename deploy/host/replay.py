"""
What the lines of a journal add up to.  Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace as _replace
from typing import Any, NamedTuple

from deploy.host.protocol import GoodRecord, GoodRelease, GoodRollback, LeaseAcquire, Unfinished
from deploy.host.records import (
    Begun,
    Carried,
    Checkpoint,
    Event,
    Intent,
    OpenIntent,
    Record,
    Result,
    digest_of,
)

BEGIN, END = "release.begin", "release.end"
GOOD_MAX = 1000  # good releases that a checkpoint carries: `release.keep` is never higher
OPEN_MAX = 100  # open intents that it carries
_OUTCOME_PAUSED, _OUTCOME_FAILED = "paused", "failed"
_EPOCH_MAX = 2**53
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


def replay(records: Iterable[Record]) -> Replayed:
    """
    Return the state after *records*.

    A result ends every earlier intent of the same step with the same arguments, so that a verb
    that was killed and run again is finished.  The end of a release ends all open intents, and
    a new release takes over the intents that an earlier one left open: one lease, one writer.
    A way back that failed has not ended: the next one goes on with it.  A checkpoint stands for
    all lines before it.
    """
    fold = _Fold()
    for record in records:
        fold.add(record)
    return Replayed(fold.good, fold.unfinished(), fold.paused, fold.seq, fold.fence, fold.epoch)


def carried(records: Iterable[Record], damaged: int) -> Carried:
    """
    Return what a checkpoint after *records* carries over.

    Args:
        damaged: Lines that could not be read.
    """
    fold = _Fold()
    for record in records:
        fold.add(record)
    newest = sorted(fold.open_intents.values(), key=lambda intent: intent.seq)[-OPEN_MAX:]
    return Carried(
        tuple(fold.good[-GOOD_MAX:]),
        tuple(newest),
        fold.begun,
        fold.paused,
        fold.fence,
        fold.epoch,
        damaged,
    )


class _Fold:
    """
    State while lines are added.
    """

    def __init__(self) -> None:
        self.good: list[GoodRelease] = []
        self.open_intents: dict[str, OpenIntent] = {}
        self.begun: Begun | None = None
        self.paused: str | None = None
        self.seq = self.fence = self.epoch = 0

    def add(self, record: Record) -> None:
        self.seq = max(self.seq, record.seq)
        if isinstance(record, Checkpoint):
            self._start_from(record.carried)
            return
        self.fence = max(self.fence, record.fence or 0)
        if isinstance(record, Intent):
            key = _key(record)
            self.open_intents.pop(key, None)
            self.open_intents[key] = OpenIntent(key, record.seq, record.release, record.step)
        elif isinstance(record, Result):
            self.open_intents.pop(_key(record), None)
            if record.ok:
                self._record_good(record)
        else:
            self._note(record)
        if self.begun is not None and record.release == self.begun.release:
            self.begun = _replace(self.begun, step=record.step)

    def unfinished(self) -> Unfinished | None:
        newest = max(self.open_intents.values(), key=lambda intent: intent.seq, default=None)
        begun = self.begun
        if begun is None:
            return Unfinished(newest.release, newest.step) if newest else None
        step = newest.step if newest else begun.step
        return Unfinished(begun.release, step, begun.rollback_to, begun.epoch, begun.bundle)

    def _start_from(self, state: Carried) -> None:
        self.good = list(state.good)
        self.open_intents = {intent.key: intent for intent in state.open_intents}
        self.begun, self.paused = state.begun, state.paused
        self.fence, self.epoch = state.fence, state.epoch

    def _note(self, event: Event) -> None:
        args = event.args
        if event.step == BEGIN:
            bundle = args.get("bundle")
            self.begun = Begun(
                event.release,
                event.step,
                rollback_to(args),
                _epoch(args.get("epoch", self.epoch)),
                str(bundle) if _is_digest(bundle) else None,
            )
            self.paused = None
        elif event.step == END:
            if self.begun is None or self.begun.release == event.release:
                outcome = args.get("outcome")
                self.paused = event.release if outcome == _OUTCOME_PAUSED else None
                if outcome != _OUTCOME_FAILED:
                    self.begun = None
                self.open_intents.clear()
        elif event.step == LeaseAcquire.VERB:
            self.epoch = max(self.epoch, _epoch(args.get("epoch")))

    def _record_good(self, result: Result) -> None:
        args, good = result.args, self.good
        if result.step == GoodRecord.VERB:
            release, bundle, version = result.release, args.get("bundle"), args.get("version")
            if not (isinstance(release, str) and isinstance(version, str) and _is_digest(bundle)):
                return  # damaged
            new = GoodRelease(release, str(bundle), version)
            if not good or (good[-1].release, good[-1].bundle) != (new.release, new.bundle):
                good.append(new)  # else recorded twice
        elif result.step == GoodRollback.VERB:
            release, bundle, version = (args.get(k) for k in ("to_release", "bundle", "version"))
            positions = [i for i, g in enumerate(good) if g.release == release]
            if positions:
                del good[positions[-1] + 1 :]
            elif isinstance(release, str) and isinstance(version, str) and _is_digest(bundle):
                self.good = [GoodRelease(release, str(bundle), version)]


def rollback_to(begin: dict[str, Any]) -> str | None:
    """
    Return the release that a rollback returns to, from the arguments of its beginning.
    """
    if begin.get("kind") != "rollback":
        return None
    target = begin.get("to_release")
    return target if isinstance(target, str) else None


def _epoch(value: object) -> int:
    """
    Return *value* as an epoch; 0 if it is none.
    """
    is_epoch = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _EPOCH_MAX
    return value if is_epoch else 0  # type: ignore[return-value]


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _key(record: Intent | Result) -> str:
    return digest_of(json.dumps([record.step, record.args], sort_keys=True).encode())
