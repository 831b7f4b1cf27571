"""
What the journals of hosts say about past releases, and whether anybody changed them.  Pure.

A host may be hostile.  What a release was is what more than half of the hosts say that have it on
record; those that say otherwise are named.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from deploy.host.protocol import DeadmanArm, DeadmanConfirm, DeadmanDisarm
from deploy.host.records import ZERO, Checkpoint, Event, Record, Result, digest_of, from_line
from deploy.host.replay import BEGIN, END

OWN_WAY_BACK = "deadman."  # begins the steps of a host's own way back
_ASKED = frozenset({DeadmanArm.VERB, DeadmanConfirm.VERB, DeadmanDisarm.VERB})  # by a controller
_TAKEN_OVER = "taken over"  # another release began before it ended


class Damage(StrEnum):
    CHANGED = "changed"
    REMOVED = "removed"
    REORDERED = "reordered"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Break:
    """
    The first place at which a journal is not as it was written.

    Attributes:
        seq: Number of the line at which it shows.
        why: With the numbers.
    """

    seq: int
    damage: Damage
    why: str


@dataclass(frozen=True, slots=True)
class Head:
    """
    The last line of a journal, as it was seen.
    """

    seq: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HostJournal:
    """
    The journal of one host.

    Attributes:
        lines: As they stand in the file, oldest first.
        records: Those that can be read.
    """

    lines: tuple[str, ...]
    records: tuple[Record, ...]

    @classmethod
    def of(cls, lines: Iterable[str]) -> "HostJournal":
        texts = tuple(lines)
        parsed = (from_line(text.encode()) for text in texts)
        return cls(texts, tuple(record for record in parsed if record is not None))

    @property
    def head(self) -> Head | None:
        """
        Return its last line; None if it is empty or the line is damaged.
        """
        last = from_line(self.lines[-1].encode()) if self.lines else None
        return Head(last.seq, digest_of(self.lines[-1].encode())) if last is not None else None


def verify(lines: Sequence[str], seen: Head | None = None) -> Break | None:
    """
    Return the first place at which the chain of *lines* is broken; None if it is whole.

    Lines from before there was a chain come first and are not checked, the last of them excepted.

    Args:
        seen: Last line that was seen earlier: it has to be among *lines*.
    """
    seen_digest: str | None = None
    before: Record | None = None
    for number, text in enumerate(lines):
        line = text.encode()
        record = from_line(line)
        last_seq = before.seq if before is not None else 0
        if record is None:
            return Break(last_seq + 1, Damage.CHANGED, f"the line after {last_seq} is damaged")
        if number == 0:
            broken = _first(record)
        else:
            assert before is not None
            broken = _next(record, before, digest_of(lines[number - 1].encode()))
        if broken is not None:
            return broken
        if seen is not None and record.seq == seen.seq:
            seen_digest = digest_of(line)
        before = record
    if seen is None or seen_digest == seen.sha256:
        return None
    if seen_digest is not None:
        return Break(seen.seq, Damage.CUT, f"line {seen.seq} is not the one that was seen earlier")
    first = from_line(lines[0].encode()) if lines else None
    if first is not None and first.seq > seen.seq:
        return Break(
            seen.seq,
            Damage.CUT,
            f"line {seen.seq}, seen earlier, is no longer kept: the oldest line is {first.seq}",
        )
    last = f"it ends at {before.seq}" if before is not None else "it is empty"
    return Break(seen.seq, Damage.CUT, f"line {seen.seq} was seen earlier; {last}")


def _first(record: Record) -> Break | None:
    is_head = isinstance(record, Checkpoint) or record.prev is None
    if is_head or (record.seq, record.prev) == (1, ZERO):
        return None
    return Break(record.seq, Damage.REMOVED, f"the lines before {record.seq} are missing")


def _next(record: Record, before: Record, digest: str) -> Break | None:
    if record.prev is None:
        if before.prev is None:
            return None
        return Break(record.seq, Damage.CHANGED, f"line {record.seq} has no hash")
    if record.prev == digest and record.seq == before.seq + 1:
        return None
    if record.seq <= before.seq:
        why = f"line {record.seq} stands after line {before.seq}"
        return Break(record.seq, Damage.REORDERED, why)
    if record.seq > before.seq + 1:
        missing = f"{before.seq + 1} to {record.seq - 1}"
        return Break(record.seq, Damage.REMOVED, f"lines are missing: {missing}")
    why = f"line {before.seq} is not the one that line {record.seq} has the hash of"
    return Break(record.seq, Damage.CHANGED, why)


@dataclass(frozen=True, slots=True)
class PastRelease:
    """
    A release or rollback of the fleet.

    Attributes:
        kind: release or rollback.
        began_at, ended_at: UTC by the clocks of the hosts: the median of those that agree; None:
            not on record.
        actor: Who began it.
        outcome: As release.end has it; None: it has not ended, or the hosts do not agree.
        evidence: As release.end has it.
        hosts: Those that have it on record and agree.
        others: What the other hosts say, by host.
    """

    release: str
    kind: str
    began_at: str | None
    ended_at: str | None
    actor: str
    outcome: str | None
    reason: str
    evidence: Mapping[str, Any] | None
    hosts: tuple[str, ...]
    others: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "release": self.release,
            "kind": self.kind,
            "began_at": self.began_at,
            "ended_at": self.ended_at,
            "actor": self.actor,
            "outcome": self.outcome,
            "reason": self.reason,
            "evidence": self.evidence,
            "hosts": list(self.hosts),
            "others": dict(self.others),
        }


@dataclass(frozen=True, slots=True)
class OwnWayBack:
    """
    Something that a host did by itself.

    Attributes:
        ended_at: None: it has not ended, or it is an event.
        step: Begins with `deadman.`.
    """

    host: str
    at: str
    ended_at: str | None
    release: str | None
    step: str
    data: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "at": self.at,
            "ended_at": self.ended_at,
            "release": self.release,
            "step": self.step,
            "data": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class History:
    """
    Attributes:
        releases: Newest first.
        own_ways_back: Newest first.
        heads: Last line of each journal that is whole.
        broken: First broken place of each journal that is not.
    """

    releases: tuple[PastRelease, ...]
    own_ways_back: tuple[OwnWayBack, ...]
    heads: Mapping[str, Head]
    broken: Mapping[str, Break]


def make_history(journals: Mapping[str, HostJournal], seen: Mapping[str, Head]) -> History:
    """
    Return what *journals* of hosts say.

    Args:
        seen: Last line of each host that was seen earlier.
    """
    told: dict[str, dict[str, _Told]] = {}
    own: list[OwnWayBack] = []
    heads, broken = {}, {}
    for host, journal in journals.items():
        for release, what in _told_by(journal.records).items():
            told.setdefault(release, {})[host] = what
        own += _own_ways_back(host, journal.records)
        found = verify(journal.lines, seen.get(host))
        if found is not None:
            broken[host] = found
        elif (head := journal.head) is not None:
            heads[host] = head
    releases = [_agreed(release, by_host) for release, by_host in told.items()]
    releases.sort(key=lambda past: past.began_at or past.ended_at or "", reverse=True)
    own.sort(key=lambda one: one.at, reverse=True)
    return History(tuple(releases), tuple(own), heads, broken)


@dataclass(frozen=True, slots=True)
class _Told:
    """
    What one host says about a release.
    """

    kind: str = "release"
    actor: str = ""
    began_at: str | None = None
    ended_at: str | None = None
    outcome: str | None = None
    reason: str = ""
    evidence: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def vote(self) -> tuple[str, str, str | None]:
        return self.kind, self.actor, self.outcome


def _told_by(records: Iterable[Record]) -> dict[str, _Told]:
    told: dict[str, _Told] = {}
    open_release: str | None = None
    for record in records:
        if not isinstance(record, Event) or record.release is None:
            continue
        release, args = record.release, record.args
        known = told.get(release, _Told(actor=record.actor))
        if record.step == BEGIN:
            if open_release is not None and open_release != release:
                told[open_release] = _ended(told[open_release], None, {"outcome": _TAKEN_OVER})
            open_release = release
            told[release] = _Told(
                kind="rollback" if args.get("kind") == "rollback" else "release",
                actor=known.actor,
                began_at=known.began_at or record.at,  # it may be begun again, to go on
            )
        elif record.step == END:
            open_release = None if open_release == release else open_release
            told[release] = _ended(known, record.at, args)
    return told


def _ended(known: _Told, at: str | None, args: Mapping[str, Any]) -> _Told:
    evidence = args.get("evidence")
    return _Told(
        kind=known.kind,
        actor=known.actor,
        began_at=known.began_at,
        ended_at=at,
        outcome=_text(args.get("outcome")),
        reason=_text(args.get("reason")),
        evidence=evidence if isinstance(evidence, dict) else None,
    )


def _agreed(release: str, by_host: Mapping[str, _Told]) -> PastRelease:
    """
    Return what more than half of the hosts say; without such a majority the outcome is None.
    """
    votes = Counter(told.vote for told in by_host.values())
    vote, count = max(votes.items(), key=lambda item: (item[1], str(item[0])))
    is_majority = 2 * count > len(by_host)
    agree = {host: told for host, told in by_host.items() if is_majority and told.vote == vote}
    kinds = Counter(told.kind for told in by_host.values())
    reasons = Counter(told.reason for told in agree.values())
    reason = reasons.most_common(1)[0][0] if reasons else "the hosts do not agree"
    evidence = [told.evidence for told in agree.values() if told.reason == reason]
    return PastRelease(
        release=release,
        kind=vote[0] if is_majority else kinds.most_common(1)[0][0],
        began_at=_median(told.began_at for told in (agree or by_host).values()),
        ended_at=_median(told.ended_at for told in agree.values()),
        actor=vote[1] if is_majority else "",
        outcome=vote[2] if is_majority else None,
        reason=reason,
        evidence=next((one for one in evidence if one is not None), None),
        hosts=tuple(sorted(agree)),
        others={host: _says(told) for host, told in sorted(by_host.items()) if host not in agree},
    )


def _says(told: _Told) -> str:
    return f"{told.kind} of {told.actor}: {told.outcome or 'not ended'}"


def _median(times: Iterable[str | None]) -> str | None:
    known = sorted(at for at in times if at is not None)
    return known[(len(known) - 1) // 2] if known else None


def _own_ways_back(host: str, records: Iterable[Record]) -> list[OwnWayBack]:
    own: list[OwnWayBack] = []
    for record in records:
        if isinstance(record, Checkpoint) or not record.step.startswith(OWN_WAY_BACK):
            continue
        if record.step in _ASKED:
            continue
        new = OwnWayBack(host, record.at, None, record.release, record.step, record.args)
        if isinstance(record, Result):
            # It ends the one that began with the same arguments.
            begun = [i for i, one in enumerate(own) if replace(one, at=new.at) == new]
            if begun:
                own[begun[-1]] = replace(own[begun[-1]], ended_at=record.at)
                continue
            new = replace(new, ended_at=record.at)
        own.append(new)
    return own


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
