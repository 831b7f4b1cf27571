"""
From what a host measured of a canary to the requests and errors that count.  Pure.

A slot never counts by its own word alone: a request is good where the slot and HAProxy both say
so, and an error where one of them does.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple, TypeVar

from deploy.host.protocol import OwnCounters, ProxyCounters, SlotCounters

# A slot and HAProxy are read one after the other, and requests are in flight meanwhile.
_TOLERANCE, _TOLERANCE_SHARE = 20, 0.1
_EXCUSE_S = 5.0  # longest time that an excuse may come after its answer
RECENT_S = 10.0

Counters = TypeVar("Counters", OwnCounters, ProxyCounters)


@dataclass(frozen=True, slots=True)
class Reading:
    """
    One slot's cumulative counters on one host, as read at one moment.

    Attributes:
        at_s: When, on the controller's monotonic clock.
    """

    at_s: float
    slot: SlotCounters


@dataclass(frozen=True, slots=True)
class Beside:
    """
    What the stable slot of the same host did in the same time.

    Attributes:
        good, refused: As in `Window`.
        good_since: Good answers since the last one of the canary.
    """

    good: int
    refused: int
    good_since: int


@dataclass(frozen=True, slots=True)
class Window:
    """
    What the canary of one host did between two readings.

    Attributes:
        requests: Requests that say something about the release: good ones and errors.
        errors: 5xx by its fault, failed connections, empty, broken and cut answers, repeated
            attempts.
        attempts: Requests that HAProxy sent to the canary.
        answered: Those that it answered, with any code.
        excused: Answers with a 5xx for a full queue or for a deadline of the client, by the
            slot's own word.
        refused: Those, and answers with a 4xx.
        recent_requests, recent_errors: Over the last `RECENT_S`.
        span_s: From the first reading to the last.
        quiet_s: Since the last reading that had a new good answer.
        unanswered: Requests sent since then, less answers with any code.
        unready_s: Since the last reading in which it was ready; 0: it is ready.
        is_failed: Its unit is in systemd's state "failed".
        unreadable: Why the latest reading has no counters.
        contradiction: Where the slot's own numbers cannot be true beside HAProxy's, with both.
        beside: None: no stable slot was measured.
    """

    requests: int
    errors: int
    restarts: int
    attempts: int = 0
    answered: int = 0
    excused: int = 0
    refused: int = 0
    recent_requests: int = 0
    recent_errors: int = 0
    span_s: float = 0.0
    quiet_s: float = 0.0
    unanswered: int = 0
    unready_s: float = 0.0
    is_ready: bool = True
    is_failed: bool = False
    unreadable: str | None = None
    contradiction: str | None = None
    beside: Beside | None = None

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def good(self) -> int:
        return self.requests - self.errors


class _Totals(NamedTuple):
    """
    What was added since the first reading, at one reading.
    """

    own: OwnCounters
    proxy: ProxyCounters


def counted(history: Sequence[Reading], within_s: float, stable: Sequence[Reading] = ()) -> Window:
    """
    Return what one slot did over *history*, oldest reading first; restarts over *within_s* only.

    A reading without counters adds nothing: the next one with counters has what it missed.

    Args:
        stable: Readings of the stable slot beside it, of the same moments.
    """
    if not history:
        return Window(0, 0, 0, unreadable="it was not measured", is_ready=False)
    totals = _totals(history)
    own, proxy = totals[-1]
    good, errors = _evidence(history, totals, 0)
    last = history[-1]
    recently = next(i for i, r in enumerate(history) if r.at_s >= last.at_s - RECENT_S)
    recent_good, recent_errors = _evidence(history, totals, recently)
    recent = next(reading for reading in history if reading.at_s >= last.at_s - within_s)
    alive = _last_good(totals)
    then = totals[alive].proxy
    ready = max((r.at_s for r in history if r.slot.is_ready), default=history[0].at_s)
    return Window(
        requests=good + errors,
        errors=errors,
        restarts=max(0, last.slot.restarts - recent.slot.restarts),
        attempts=proxy.attempts,
        answered=_answered(proxy),
        excused=own.excused,
        refused=_refused(totals[-1]),
        recent_requests=recent_good + recent_errors,
        recent_errors=recent_errors,
        span_s=last.at_s - history[0].at_s,
        quiet_s=last.at_s - history[alive].at_s,
        unanswered=max(0, proxy.attempts - then.attempts - _answered(proxy) + _answered(then)),
        unready_s=last.at_s - ready,
        is_ready=last.slot.is_ready,
        is_failed=last.slot.unit == "failed",
        unreadable=_unreadable(last.slot),
        contradiction=_contradiction(history, totals),
        beside=_beside(stable, history[alive].at_s) if stable else None,
    )


def windows(
    histories: Mapping[str, Sequence[Reading]],
    within_s: float,
    *,
    stable: Mapping[str, Sequence[Reading]] | None = None,
) -> dict[str, Window]:
    """
    Return the window of each host of a wave.

    Args:
        stable: Readings of the stable slots beside them, by host.
    """
    beside = stable or {}
    return {
        host: counted(history, within_s, beside.get(host, ()))
        for host, history in histories.items()
    }


def pooled(of: Iterable[Window]) -> Window:
    """
    Return the counts of several hosts, added up.
    """
    hosts = list(of)
    return Window(
        requests=sum(w.requests for w in hosts),
        errors=sum(w.errors for w in hosts),
        restarts=sum(w.restarts for w in hosts),
        attempts=sum(w.attempts for w in hosts),
        excused=sum(w.excused for w in hosts),
        recent_requests=sum(w.recent_requests for w in hosts),
    )


def _totals(history: Sequence[Reading]) -> list[_Totals]:
    own = _increase([reading.slot.own for reading in history], OwnCounters)
    proxy = _increase([reading.slot.proxy for reading in history], ProxyCounters)
    return list(map(_Totals, own, proxy))


def _increase(readings: Sequence[Counters | None], make: type[Counters]) -> list[Counters]:
    """
    Return by how much the counters had risen at each of *readings*.

    Where one decreases, its process was started anew: all its counters are new then.
    """
    total = [0] * len(fields(make))
    risen = make(*total)
    before: tuple[int, ...] | None = None
    found = []
    for reading in readings:
        if reading is not None:
            after = _values(reading)
            if before is not None and after != before:
                was_reset = _is_reset(before, after)
                for position, value in enumerate(after):
                    total[position] += value if was_reset else value - before[position]
                risen = make(*total)
            before = after
        found.append(risen)
    return found


def _evidence(history: Sequence[Reading], totals: Sequence[_Totals], start: int) -> tuple[int, int]:
    """
    Return good requests and errors since the reading *start*.
    """
    (own, proxy), (own_0, proxy_0) = totals[-1], totals[start]
    unanswered = _failed(proxy) - _failed(proxy_0)
    # HAProxy counts some repetitions in both.
    repeated = max(proxy.retries - proxy_0.retries, proxy.redispatches - proxy_0.redispatches)
    excused = own.excused - own_0.excused
    answers_5xx = proxy.answers_5xx - proxy_0.answers_5xx
    if excused:
        seen = totals[max(start, _excusable(history))].proxy.answers_5xx - proxy_0.answers_5xx
        answers_5xx = max(0, seen - excused)
    own_errors = own.errors - own_0.errors
    errors = max(answers_5xx + unanswered + repeated, own_errors + unanswered)
    good = min(proxy.answers_2xx - proxy_0.answers_2xx, own.requests - own_0.requests - own_errors)
    return max(0, good), errors


def _excusable(history: Sequence[Reading]) -> int:
    """
    Return the last reading whose answers are all excused by now, where they have an excuse.

    HAProxy is read after the slot, so that the slot's excuse of an answer may be in the next
    reading that has its counters.
    """
    told = max((i for i, r in enumerate(history) if r.slot.own), default=0)
    late_s = history[-1].at_s - _EXCUSE_S
    late = max((i for i, r in enumerate(history) if r.at_s <= late_s), default=0)
    return max(told - 1, late, 0)


def _failed(proxy: ProxyCounters) -> int:
    return proxy.connection_errors + proxy.response_errors + proxy.cut_answers


def _answered(proxy: ProxyCounters) -> int:
    return proxy.answers_2xx + proxy.answers_4xx + proxy.answers_5xx


def _refused(totals: _Totals) -> int:
    return totals.proxy.answers_4xx + totals.own.excused


def _good(totals: _Totals) -> int:
    return max(0, min(totals.proxy.answers_2xx, totals.own.requests - totals.own.errors))


def _last_good(totals: Sequence[_Totals]) -> int:
    """
    Return the last reading that had a new good answer; the first one without any.
    """
    good = _good(totals[-1])
    return next(i for i, total in enumerate(totals) if _good(total) >= good)


def _beside(stable: Sequence[Reading], since_s: float) -> Beside:
    totals = _totals(stable)
    then = max((i for i, r in enumerate(stable) if r.at_s <= since_s), default=0)
    good = _good(totals[-1])
    return Beside(good, _refused(totals[-1]), max(0, good - _good(totals[then])))


def _values(counters: OwnCounters | ProxyCounters) -> tuple[int, ...]:
    values = astuple(counters)
    # Requests in flight rise and fall.
    return (*values[:-1], 0) if isinstance(counters, ProxyCounters) else values


def _is_reset(before: Sequence[int], after: Sequence[int]) -> bool:
    return any(new < old for old, new in zip(before, after, strict=True))


def _unreadable(slot: SlotCounters) -> str | None:
    if slot.own is not None and slot.proxy is not None:
        return None
    return slot.problem or "its counters are missing"


def _contradiction(history: Sequence[Reading], totals: Sequence[_Totals]) -> str | None:
    """
    Return where the slot claims what HAProxy cannot have seen; None while both may be true.

    After a restart of one of them, their counts are not of the same requests.
    """
    whole = [(r.slot.own, r.slot.proxy) for r in history if r.slot.own and r.slot.proxy]
    if len(whole) < 2 or history[0].slot.restarts != history[-1].slot.restarts:
        return None
    rows = [(*_values(of_slot), *_values(of_proxy)) for of_slot, of_proxy in whole]
    if any(_is_reset(before, after) for before, after in itertools.pairwise(rows)):
        return None
    own, proxy = totals[-1]
    sent = proxy.attempts + whole[0][1].sessions
    if own.requests > _with_tolerance(sent):
        return f"the slot says that it answered {own.requests} requests, HAProxy sent it {sent}"
    seen = _excusable(history) if own.excused else -1
    if totals[seen].proxy.answers_5xx > _with_tolerance(own.answers_5xx):
        return (
            f"the slot says that it answered {own.answers_5xx} requests with 5xx, "
            f"HAProxy saw {totals[seen].proxy.answers_5xx}"
        )
    return None


def _with_tolerance(number: int) -> float:
    return number * (1 + _TOLERANCE_SHARE) + _TOLERANCE
