"""
The lines of the journal as typed records, and the SHA-256 that chains them.

A line is one JSON object: the fields of its record, and `phase`, which names the type.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

from deploy.host.codec import Malformed, Range, decode, encode
from deploy.host.protocol import Digest, Epoch, GoodRelease, JournalNumber

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from deploy.host.message import dataclass

ZERO = "0" * 64  # `prev` of the first line of all
PART_MAX = 64 << 10  # bytes of `args`, `error` and `result` each


Number = Annotated[int, Range(0, 2**53)]


@dataclass(frozen=True)
class Intent:
    """
    A step that is about to change the host.

    Attributes:
        args: What tells the step from others; the same for the same thing done again.
        seq, at, boot_id, prev: Set when the line is written.
        prev: SHA-256 of the line before; None: written before lines were chained.
    """

    release: Optional[str]
    fence: Optional[Number]
    actor: str
    step: str
    args: dict[str, Any]
    seq: JournalNumber = 0
    at: str = ""
    boot_id: str = ""
    prev: Optional[Digest] = None


@dataclass(frozen=True)
class Result:
    """
    How a step ended.

    Attributes:
        intent: JournalNumber of its intent.
        error: Why it failed: kind, what, why, fix.
        result: What the verb returned.
    """

    release: Optional[str]
    fence: Optional[Number]
    actor: str
    step: str
    args: dict[str, Any]
    ok: bool
    intent: JournalNumber = 0
    error: Optional[dict[str, Any]] = None
    result: Any = None
    seq: JournalNumber = 0
    at: str = ""
    boot_id: str = ""
    prev: Optional[Digest] = None


@dataclass(frozen=True)
class Event:
    """
    Something that has no effect of its own.
    """

    release: Optional[str]
    fence: Optional[Number]
    actor: str
    step: str
    args: dict[str, Any]
    seq: JournalNumber = 0
    at: str = ""
    boot_id: str = ""
    prev: Optional[Digest] = None


@dataclass(frozen=True)
class OpenIntent:
    """
    An intent without a result.

    Attributes:
        key: SHA-256 of step and arguments.
    """

    key: Digest
    seq: JournalNumber
    release: Optional[str]
    step: str


@dataclass(frozen=True)
class Begun:
    """
    A release that began and has not ended.

    Attributes:
        step: Its last one.
        rollback_to: Release that it returns to, if it is a rollback.
        epoch: Of the desired state that it began under; 0: not known.
        bundle: The bundle that it goes to.
    """

    release: Optional[str]
    step: str
    rollback_to: Optional[str]
    epoch: Epoch = 0
    bundle: Optional[Digest] = None


@dataclass(frozen=True)
class Carried:
    """
    What the lines before a checkpoint add up to.

    Attributes:
        good: Releases recorded as good and not rolled back, oldest first.
        paused: Release that waits for a decision of the operator.
        fence, epoch: The highest.
        damaged: Lines that could not be read.
    """

    good: tuple[GoodRelease, ...]
    open_intents: tuple[OpenIntent, ...]
    begun: Optional[Begun]
    paused: Optional[str]
    fence: Number
    epoch: Epoch
    damaged: Number


@dataclass(frozen=True)
class Checkpoint:
    """
    The first line of a file that follows another one.
    """

    actor: str
    carried: Carried
    seq: JournalNumber = 0
    at: str = ""
    boot_id: str = ""
    prev: Optional[Digest] = None


Record = Union[Intent, Result, Event, Checkpoint]
_TYPES: dict[str, Any] = {
    "intent": Intent,
    "result": Result,
    "event": Event,
    "checkpoint": Checkpoint,
}
_PHASES = {kind: phase for phase, kind in _TYPES.items()}


def to_line(record: Record) -> bytes:
    """
    Return *record* as a line, without its end.
    """
    return json.dumps({"phase": _PHASES[type(record)], **encode(record)}, sort_keys=True).encode()


@lru_cache(maxsize=1024)  # a call reads the newest lines several times
def from_line(line: bytes) -> Record | None:
    """
    Return the record of *line*; None if it is damaged.
    """
    try:
        document = json.loads(line)
        if not isinstance(document, dict):
            return None
        phase = document.pop("phase", None)
        kind = _TYPES.get(phase) if isinstance(phase, str) else None
        if kind is None:
            return None
        if "prev" not in document:
            document = _of_former_format(kind, document)
        record: Record = decode(kind, document)
    except (Malformed, ValueError, RecursionError):
        return None
    return record


def digest_of(line: bytes) -> str:
    """
    Return the SHA-256 of *line*, the `prev` of the next one.
    """
    return hashlib.sha256(line).hexdigest()


def bounded(part: dict[str, Any]) -> dict[str, Any]:
    """
    Return *part* of a line; in place of what makes it too long, its size and its SHA-256.

    The same *part* always gives the same.
    """
    if len(json.dumps(part)) <= PART_MAX:
        return part
    cut = {key: _cut(value) for key, value in part.items()}
    return cut if len(json.dumps(cut)) <= PART_MAX else _cut(part)


def _cut(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True)
    if len(text) <= PART_MAX // 4:
        return value
    return {"cut_bytes": len(text), "sha256": digest_of(text.encode())}


def _of_former_format(kind: Any, document: dict[str, Any]) -> dict[str, Any]:
    """
    Return a line that was written before lines were chained, in the fields of *kind*.

    Every line had the fields of all kinds, and some that are no longer written.
    """
    fields = {
        "release": document.get("release"),
        "fence": document.get("fence"),
        "actor": document.get("actor") or "unknown",
        "step": document.get("step"),
        "args": document.get("args") or {},
        "seq": document.get("seq"),
        "at": document.get("at") or "",
        "boot_id": document.get("boot_id") or "",
    }
    if kind is Result:
        fields |= {
            "ok": bool(document.get("ok")),
            "intent": document.get("intent") or 0,
            "error": document.get("error"),
            "result": document.get("result"),
        }
    return fields
