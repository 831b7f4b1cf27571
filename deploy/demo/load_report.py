"""
Report of the load generator: a record for each request, and the summary.  Pure.
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


class LoadOutcome(StrEnum):
    """
    How a request ended for its client.
    """

    OK = "ok"
    ERROR_STATUS = "error_status"  # the runtime answered with an error status
    LOST = "lost"  # refused, reset, no answer in time, or an error of the proxy
    CUT_STREAM = "cut_stream"  # the stream began and did not end with [DONE]
    UNFINISHED = "unfinished"  # the generator stopped first; says nothing about the server


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """
    One request.

    Attributes:
        due_at: Time at which it was due, in seconds since the epoch (UTC).
        target: Base URL.
        streamed: True for a stream.
        outcome: See `LoadOutcome`.
        status: HTTP status; None without an answer.
        version: Version of the runtime that answered; None if none did.
        latency_s: Time from *due_at* to the end of the answer, or to the failure.
        first_byte_s: Time from *due_at* to the first event of a stream; None without one.
        detail: Cause of a failure, in one line; None for success.
    """

    due_at: float
    target: str
    streamed: bool
    outcome: LoadOutcome
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
        return cls(due_at, target, streamed, LoadOutcome(outcome), *rest)


@dataclass(frozen=True, slots=True)
class TrafficSecond:
    """
    Requests to one target that were due in one second.

    Attributes:
        at: Start of the second, in seconds since the epoch (UTC).
        answered: Number of answers by version, errors included.
        errors: Number of error answers and cut streams by version.
        lost: Number of lost requests.
    """

    at: int
    target: str
    answered: Mapping[str, int]
    errors: Mapping[str, int]
    lost: int

    def share(self, version: str) -> float:
        """
        Return the share of answers from *version*, 0 to 1; 0 without any answer.
        """
        total = sum(self.answered.values())
        return self.answered.get(version, 0) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Exposure:
    """
    How long one version answered users, and to what share of them.

    Attributes:
        first_at: Time at which its first request was due, ISO 8601 in UTC.
        last_at: End of its last answer, ISO 8601 in UTC.
        seconds: Time from *first_at* to *last_at*.
        requests: Number of requests that it answered.
        share: Its share of all answers in that time, over all targets, 0 to 1.
        peak_share: Its highest share in one second on one target with at least 10 answers.
        errors: Number of its error answers and cut streams.
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
    Totals over all targets.  Streams are included in all counts of requests.

    Attributes:
        error_requests: Requests that a runtime answered with an error status.
        errors_by_version: {version: {status: count}}; the status of a cut stream is "cut".
        latency_s: p50, p95, p99 and max of the successful plain requests.
        losses: The first 20 requests that were lost or cut.
        timeline: Ordered by time, then by target.
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
    losses: tuple[RequestRecord, ...]
    timeline: tuple[TrafficSecond, ...]
    targets: tuple[str, ...]
    records: tuple[RequestRecord, ...]

    def exposure(self, version: str) -> Exposure | None:
        """
        Return the exposure of *version*; None if it never answered.
        """
        own = [r for r in self.records if r.version == version]
        if not own:
            return None
        first_due, last_due = min(r.due_at for r in own), max(r.due_at for r in own)
        last_end = max(r.due_at + r.latency_s for r in own)
        window = [r for r in self.records if r.version and first_due <= r.due_at <= last_due]
        shares = [s.share(version) for s in self.timeline if sum(s.answered.values()) >= 10]
        return Exposure(
            version=version,
            first_at=_utc(first_due),
            last_at=_utc(last_end),
            seconds=last_end - first_due,
            requests=len(own),
            share=len(own) / len(window),
            peak_share=max(shares, default=len(own) / len(window)),
            errors=sum(
                r.outcome in (LoadOutcome.ERROR_STATUS, LoadOutcome.CUT_STREAM) for r in own
            ),
        )

    def as_json(self) -> dict[str, Any]:
        """
        Return the report as a JSON document, without the single records.
        """
        document = {key: getattr(self, key) for key in self.__slots__ if key != "records"}
        return document | {
            "losses": [asdict(loss) | {"due_at": loss.started_at} for loss in self.losses],
            "timeline": [asdict(second) | {"at": _utc(second.at)} for second in self.timeline],
            "targets": list(self.targets),
        }


def summarise(records: Iterable[RequestRecord], targets: Sequence[str]) -> LoadReport:
    """
    Return the report of *records*, which may be in any order.
    """
    ordered = tuple(sorted(records, key=lambda record: record.due_at))
    outcomes = Counter(record.outcome for record in ordered)
    errors: dict[str, Counter[str]] = {}
    for record in ordered:
        if kind := _error_kind(record):
            errors.setdefault(record.version or NO_VERSION, Counter())[kind] += 1
    lost = (LoadOutcome.LOST, LoadOutcome.CUT_STREAM)
    latencies_s = [r.latency_s for r in ordered if r.outcome is LoadOutcome.OK and not r.streamed]
    return LoadReport(
        requests=len(ordered),
        streams=sum(record.streamed for record in ordered),
        ok=outcomes[LoadOutcome.OK],
        error_requests=outcomes[LoadOutcome.ERROR_STATUS],
        lost_requests=outcomes[LoadOutcome.LOST],
        cut_streams=outcomes[LoadOutcome.CUT_STREAM],
        unfinished=outcomes[LoadOutcome.UNFINISHED],
        requests_by_version=dict(Counter(_version(r) for r in ordered if r.status is not None)),
        errors_by_version={version: dict(kinds) for version, kinds in errors.items()},
        latency_s=_quantiles(latencies_s),
        started_at=_utc(ordered[0].due_at) if ordered else None,
        ended_at=_utc(max(r.due_at + r.latency_s for r in ordered)) if ordered else None,
        losses=tuple(record for record in ordered if record.outcome in lost)[:20],
        timeline=_timeline(ordered, targets),
        targets=tuple(targets),
        records=ordered,
    )


def _error_kind(record: RequestRecord) -> str | None:
    if record.outcome is LoadOutcome.ERROR_STATUS:
        return str(record.status)
    return "cut" if record.outcome is LoadOutcome.CUT_STREAM else None


def _version(record: RequestRecord) -> str:
    return record.version or NO_VERSION


def _timeline(
    ordered: Sequence[RequestRecord], targets: Sequence[str]
) -> tuple[TrafficSecond, ...]:
    groups: dict[tuple[int, str], list[RequestRecord]] = {}
    for record in ordered:
        groups.setdefault((math.floor(record.due_at), record.target), []).append(record)
    position = {target: index for index, target in enumerate(targets)}
    return tuple(
        TrafficSecond(
            at=at,
            target=target,
            answered=dict(Counter(_version(r) for r in records if _is_answer(r))),
            errors=dict(Counter(_version(r) for r in records if _error_kind(r))),
            lost=sum(r.outcome is LoadOutcome.LOST for r in records),
        )
        for (at, target), records in sorted(
            groups.items(), key=lambda group: (group[0][0], position[group[0][1]])
        )
    )


def _is_answer(record: RequestRecord) -> bool:
    return record.outcome in (
        LoadOutcome.OK,
        LoadOutcome.ERROR_STATUS,
        LoadOutcome.CUT_STREAM,
    )


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
