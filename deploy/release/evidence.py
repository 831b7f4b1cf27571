"""
From what a host measured of a canary to the requests and errors that count.  Pure.

A slot never counts by its own word alone: a request is good where the slot and HAProxy both say
so, and an error where one of them does.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Generic, NamedTuple, TypeVar

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


class History:
    """
    The readings of one slot, oldest first, and what each of them adds up to.

    A reading costs the same however many there are: a fleet is measured each second.
    """

    def __init__(self, readings: Iterable[Reading] = ()) -> None:
        self.readings: list[Reading] = []
        self._totals: list[_Totals] = []
        self._own, self._proxy = _Rise(OwnCounters), _Rise(ProxyCounters)
        self._last_good = 0  # position of the last reading that had a new good answer
        self._ready_s = 0.0
        self._told = 0  # position of the last reading that has the slot's numbers
        self._whole: list[int] = []  # positions of the first and the last reading of both
        for reading in readings:
            self.append(reading)

    def append(self, reading: Reading) -> None:
        position = len(self.readings)
        self.readings.append(reading)
        own, proxy = reading.slot.own, reading.slot.proxy
        self._totals.append(_Totals(self._own.add(own), self._proxy.add(proxy)))
        if _good(self._totals[-1]) > _good(self._totals[self._last_good]):
            self._last_good = position
        if own is not None:
            self._told = position
        if reading.slot.is_ready or position == 0:
            self._ready_s = reading.at_s
        if own is not None and proxy is not None:
            self._whole = [*self._whole[:1], position]

    def window(self, within_s: float) -> Window:
        """
        Return what the slot did; restarts over *within_s* only.
        """
        if not self.readings:
            return Window(0, 0, 0, unreadable="it was not measured", is_ready=False)
        first, last = self.readings[0], self.readings[-1]
        total, then = self._totals[-1], self._totals[self._last_good]
        errors, recent_errors = self._errors(0), self._errors(self._at(last.at_s - RECENT_S))
        recent_good = self._good_since(self._at(last.at_s - RECENT_S))
        before = self.readings[self._at(last.at_s - within_s)]
        sent = total.proxy.attempts - then.proxy.attempts
        return Window(
            requests=self._good_since(0) + errors,
            errors=errors,
            restarts=max(0, last.slot.restarts - before.slot.restarts),
            attempts=total.proxy.attempts,
            answered=_answered(total),
            excused=total.own.excused,
            refused=_refused(total),
            recent_requests=recent_good + recent_errors,
            recent_errors=recent_errors,
            span_s=last.at_s - first.at_s,
            quiet_s=last.at_s - self.last_good_s,
            unanswered=max(0, sent - _answered(total) + _answered(then)),
            unready_s=last.at_s - self._ready_s,
            is_ready=last.slot.is_ready,
            is_failed=last.slot.unit == "failed",
            unreadable=_unreadable(last.slot),
            contradiction=self._contradiction(),
        )

    @property
    def last_good_s(self) -> float:
        return self.readings[self._last_good].at_s

    def beside(self, since_s: float) -> Beside | None:
        """
        Return what this slot, the stable one, did; None without a reading.

        Args:
            since_s: Last good answer of the canary.
        """
        if not self.readings:
            return None
        total = self._totals[-1]
        until = bisect_right(self.readings, since_s, key=_at_s)
        then = self._totals[max(0, until - 1)]
        return Beside(_good(total), _refused(total), max(0, _good(total) - _good(then)))

    def _at(self, at_s: float) -> int:
        """
        Return the position of the first reading at or after *at_s*.
        """
        return bisect_left(self.readings, at_s, key=_at_s)

    def _good_since(self, start: int) -> int:
        (own, proxy), (own_0, proxy_0) = self._totals[-1], self._totals[start]
        by_own = own.requests - own_0.requests - own.errors + own_0.errors
        return max(0, min(proxy.answers_2xx - proxy_0.answers_2xx, by_own))

    def _errors(self, start: int) -> int:
        (own, proxy), (own_0, proxy_0) = self._totals[-1], self._totals[start]
        unanswered = _failed(proxy) - _failed(proxy_0)
        # HAProxy counts some repetitions in both.
        repeated = max(proxy.retries - proxy_0.retries, proxy.redispatches - proxy_0.redispatches)
        seen_5xx = proxy.answers_5xx - proxy_0.answers_5xx
        if excused := own.excused - own_0.excused:
            seen = self._totals[max(start, self._excusable())].proxy.answers_5xx
            seen_5xx = max(0, seen - proxy_0.answers_5xx - excused)
        return max(seen_5xx + unanswered + repeated, own.errors - own_0.errors + unanswered)

    def _excusable(self) -> int:
        """
        Return the last reading whose answers all have their excuse by now, if they have one.

        HAProxy is read after the slot, so that the slot's excuse of an answer may be in the next
        reading that has its numbers.
        """
        late = bisect_right(self.readings, self.readings[-1].at_s - _EXCUSE_S, key=_at_s) - 1
        return max(self._told - 1, late, 0)

    def _contradiction(self) -> str | None:
        """
        Return where the slot claims what HAProxy cannot have seen; None while both may be true.

        After a restart of one of them, their counts are not of the same requests.
        """
        restarts = {self.readings[end].slot.restarts for end in (0, -1)}
        if len(self._whole) < 2 or len(restarts) > 1 or self._own.resets or self._proxy.resets:
            return None
        in_flight = self.readings[self._whole[0]].slot.proxy
        assert in_flight is not None
        own, proxy = self._totals[-1]
        sent = proxy.attempts + in_flight.sessions
        if own.requests > _with_tolerance(sent):
            return f"the slot says that it answered {own.requests} requests, HAProxy sent it {sent}"
        seen = self._totals[self._excusable() if own.excused else -1].proxy.answers_5xx
        if seen > _with_tolerance(own.answers_5xx):
            return (
                f"the slot says that it answered {own.answers_5xx} requests with 5xx, "
                f"HAProxy saw {seen}"
            )
        return None


class _Rise(Generic[Counters]):
    """
    By how much counters have risen since their first reading.

    Where one decreases, its process was started anew: all its counters are new then.

    Attributes:
        resets: How often that was.
    """

    def __init__(self, make: type[Counters]) -> None:
        self.resets = 0
        self._make: Callable[..., Counters] = make
        self._names = [field.name for field in fields(make)]
        self._total = [0] * len(self._names)
        self._risen: Counters = make(*self._total)
        self._before: list[int] | None = None

    def add(self, counters: Counters | None) -> Counters:
        """
        Return the rise with *counters*; None adds nothing, the next ones have what it missed.
        """
        if counters is None:
            return self._risen
        # Requests in flight rise and fall.
        after = [0 if n == "sessions" else getattr(counters, n) for n in self._names]
        before = self._before
        if before is not None and after != before:
            was_reset = any(new < old for old, new in zip(before, after, strict=True))
            self.resets += was_reset
            for position, value in enumerate(after):
                self._total[position] += value if was_reset else value - before[position]
            self._risen = self._make(*self._total)
        self._before = after
        return self._risen


def counted(history: Iterable[Reading], within_s: float) -> Window:
    """
    Return what one slot did over *history*, oldest reading first; restarts over *within_s* only.
    """
    return History(history).window(within_s)


def windows(
    histories: Mapping[str, History],
    within_s: float,
    *,
    stable: Mapping[str, History] | None = None,
) -> dict[str, Window]:
    """
    Return the window of each host of a wave.

    Args:
        stable: Readings of the stable slots beside them, of the same moments, by host.
    """
    found = {host: history.window(within_s) for host, history in histories.items()}
    for host, history in (stable or {}).items():
        beside = history.beside(histories[host].last_good_s)
        found[host] = replace(found[host], beside=beside)
    return found


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


def _failed(proxy: ProxyCounters) -> int:
    return proxy.connection_errors + proxy.response_errors + proxy.cut_answers


def _answered(totals: _Totals) -> int:
    proxy = totals.proxy
    return proxy.answers_2xx + proxy.answers_4xx + proxy.answers_5xx


def _refused(totals: _Totals) -> int:
    return totals.proxy.answers_4xx + totals.own.excused


def _good(totals: _Totals) -> int:
    return max(0, min(totals.proxy.answers_2xx, totals.own.requests - totals.own.errors))


def _at_s(reading: Reading) -> float:
    return reading.at_s


def _unreadable(slot: SlotCounters) -> str | None:
    if slot.own is not None and slot.proxy is not None:
        return None
    return slot.problem or "its counters are missing"


def _with_tolerance(number: int) -> float:
    return number * (1 + _TOLERANCE_SHARE) + _TOLERANCE
