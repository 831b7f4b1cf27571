"""
What a load generator saw, request by request and summed up.  Pure.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

NO_VERSION = "none"  # answered without a version header


class Outcome(StrEnum):
    """
    How a request ended, as its client saw it.
    """

    OK = "ok"
    ERROR_STATUS = "error_status"  # the runtime answered, and with an error
    LOST = "lost"  # refused, reset, no answer in time, or nothing behind the public port
    CUT_STREAM = "cut_stream"  # began, and did not end as streams end
    UNFINISHED = "unfinished"  # we stopped before it ended; says nothing about the server


@dataclass(frozen=True, slots=True)
class Record:
    """
    One request.

    Attributes:
        due_at: When it was to be sent, in seconds since the epoch (UTC).
        target: Base URL.
        streamed: It asked for a stream.
        outcome: See `Outcome`.
        status: HTTP status; None without an answer.
        version: Of the runtime that answered; None if none did.
        latency_s: From *due_at* to the end of the answer, or to the failure.
        first_byte_s: From *due_at* to the first event of a stream; None without one.
        detail: What went wrong, in one line.
    """

    due_at: float
    target: str
    streamed: bool
    outcome: Outcome
    status: int | None
    version: str | None
    latency_s: float
    first_byte_s: float | None
    detail: str | None

    @property
    def started_at(self) -> str:
        return _utc(self.due_at)

    def to_line(self) -> str:
        return json.dumps(list(asdict(self).values()), separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        due_at, target, streamed, outcome, *rest = json.loads(line)
        return cls(due_at, target, streamed, Outcome(outcome), *rest)


@dataclass(frozen=True, slots=True)
class Second:
    """
    What one target did in one second; requests count when they were due.
    """

    at: int  # seconds since the epoch (UTC)
    target: str
    answered: Mapping[str, int]  # by version, errors included
    errors: Mapping[str, int]  # by version: answered with an error, or a stream cut
    lost: int

    def share(self, version: str) -> float:
        """
        Return the share of the answers that came from *version*; 0 where nothing answered.
        """
        total = sum(self.answered.values())
        return self.answered.get(version, 0) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Exposure:
    """
    How far one version reached users.

    Attributes:
        seconds: From its first answer to its last.
        requests: Answered by it.
        share: Of all answers in that time, over all targets.
        peak_share: The highest share in one second on one target with 10 answers or more.
        errors: User-visible errors and cut streams of it.
    """

    version: str
    first_at: str
    last_at: str
    seconds: float
    requests: int
    share: float
    peak_share: float
    errors: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """
    Totals over all targets; streams are requests too.

    Attributes:
        error_requests: Answered by a runtime with an error status.
        errors_by_version: {version: {status: count}}; a cut stream counts as "cut".
        latency_s: p50, p95, p99 and max of the plain requests that ended well.
        losses: The first 20 requests that were lost or cut.
        timeline: In order of time, then of target.
    """

    requests: int
    streams: int
    ok: int
    error_requests: int
    lost_requests: int
    cut_streams: int
    unfinished: int
    requests_by_version: Mapping[str, int]
    errors_by_version: Mapping[str, Mapping[str, int]]
    latency_s: Mapping[str, float]
    started_at: str | None
    ended_at: str | None
    losses: tuple[Record, ...]
    timeline: tuple[Second, ...]
    targets: tuple[str, ...]
    records: tuple[Record, ...]

    def exposure(self, version: str) -> Exposure | None:
        """
        Return how long and how widely *version* reached users; None if it never did.
        """
        its = [r for r in self.records if r.version == version]
        if not its:
            return None
        first, last = min(r.due_at for r in its), max(r.due_at + r.latency_s for r in its)
        first_due, last_due = first, max(r.due_at for r in its)
        window = [r for r in self.records if r.version and first_due <= r.due_at <= last_due]
        busy = [s.share(version) for s in self.timeline if sum(s.answered.values()) >= 10]
        return Exposure(
            version=version,
            first_at=_utc(first),
            last_at=_utc(last),
            seconds=last - first,
            requests=len(its),
            share=len(its) / len(window),
            peak_share=max(busy, default=len(its) / len(window)),
            errors=sum(r.outcome in (Outcome.ERROR_STATUS, Outcome.CUT_STREAM) for r in its),
        )

    def as_json(self) -> dict[str, Any]:
        """
        Return all but the single requests.
        """
        found = {key: getattr(self, key) for key in self.__slots__ if key != "records"}
        found["losses"] = [asdict(loss) | {"due_at": loss.started_at} for loss in self.losses]
        found["timeline"] = [asdict(second) | {"at": _utc(second.at)} for second in self.timeline]
        found["targets"] = list(self.targets)
        return found


def summarise(records: Iterable[Record], targets: Sequence[str]) -> LoadReport:
    """
    Return the report of *records*.
    """
    ordered = tuple(sorted(records, key=lambda record: record.due_at))
    outcomes = Counter(record.outcome for record in ordered)
    errors: dict[str, Counter[str]] = {}
    for record in ordered:
        if kind := _error_kind(record):
            errors.setdefault(record.version or NO_VERSION, Counter())[kind] += 1
    lost = (Outcome.LOST, Outcome.CUT_STREAM)
    well = [r.latency_s for r in ordered if r.outcome is Outcome.OK and not r.streamed]
    return LoadReport(
        requests=len(ordered),
        streams=sum(record.streamed for record in ordered),
        ok=outcomes[Outcome.OK],
        error_requests=outcomes[Outcome.ERROR_STATUS],
        lost_requests=outcomes[Outcome.LOST],
        cut_streams=outcomes[Outcome.CUT_STREAM],
        unfinished=outcomes[Outcome.UNFINISHED],
        requests_by_version=dict(Counter(_version(r) for r in ordered if r.status is not None)),
        errors_by_version={version: dict(kinds) for version, kinds in errors.items()},
        latency_s=_quantiles(well),
        started_at=_utc(ordered[0].due_at) if ordered else None,
        ended_at=_utc(max(r.due_at + r.latency_s for r in ordered)) if ordered else None,
        losses=tuple(record for record in ordered if record.outcome in lost)[:20],
        timeline=_timeline(ordered, targets),
        targets=tuple(targets),
        records=ordered,
    )


def _error_kind(record: Record) -> str | None:
    if record.outcome is Outcome.ERROR_STATUS:
        return str(record.status)
    return "cut" if record.outcome is Outcome.CUT_STREAM else None


def _version(record: Record) -> str:
    return record.version or NO_VERSION


def _timeline(ordered: Sequence[Record], targets: Sequence[str]) -> tuple[Second, ...]:
    by_place: dict[tuple[int, str], list[Record]] = {}
    for record in ordered:
        by_place.setdefault((math.floor(record.due_at), record.target), []).append(record)
    places = sorted(by_place, key=lambda place: (place[0], list(targets).index(place[1])))
    return tuple(
        Second(
            at=at,
            target=target,
            answered=dict(Counter(_version(r) for r in found if _is_answer(r))),
            errors=dict(Counter(_version(r) for r in found if _error_kind(r))),
            lost=sum(r.outcome is Outcome.LOST for r in found),
        )
        for at, target in places
        for found in [by_place[at, target]]
    )


def _is_answer(record: Record) -> bool:
    return record.outcome in (Outcome.OK, Outcome.ERROR_STATUS, Outcome.CUT_STREAM)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """
    Return nearest-rank quantiles; empty without values.
    """
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: ordered[math.ceil(q * len(ordered)) - 1] for name, q in ranks.items()}


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
