"""
From what a host measured of a canary to the requests and errors that count.  Pure.

A slot never counts by its own word alone: a request is good where the slot and HAProxy both say
so, and an error where one of them does.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TypeVar

from deploy.host.protocol import OwnCounters, ProxyCounters, SlotCounters

# A slot and HAProxy are read one after the other, and requests are in flight meanwhile.
_TOLERANCE, _TOLERANCE_SHARE = 20, 0.1

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
class Window:
    """
    What the canary of one host did between two readings.

    Attributes:
        requests: Requests that say something about the release: good ones and errors.
        errors: 5xx, failed connections, empty, broken and cut answers, repeated attempts.
        attempts: Requests that HAProxy sent to the canary.
        answered: Those that it answered, with any code.
        is_failed: Its unit is in systemd's state "failed".
        unreadable: Why the latest reading has no counters.
        contradiction: Where the slot's own numbers cannot be true beside HAProxy's, with both.
    """

    requests: int
    errors: int
    restarts: int
    attempts: int = 0
    answered: int = 0
    is_failed: bool = False
    unreadable: str | None = None
    contradiction: str | None = None

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


def counted(history: Sequence[Reading], within_s: float) -> Window:
    """
    Return what one slot did over *history*, oldest reading first; restarts over *within_s* only.

    A reading without counters adds nothing: the next one with counters has what it missed.
    """
    if not history:
        return Window(0, 0, 0, unreadable="it was not measured")
    own = _increase([r.slot.own for r in history if r.slot.own], OwnCounters)
    proxy = _increase([r.slot.proxy for r in history if r.slot.proxy], ProxyCounters)
    unanswered = proxy.connection_errors + proxy.response_errors + proxy.cut_answers
    repeated = max(proxy.retries, proxy.redispatches)  # HAProxy counts some repetitions in both
    errors = max(proxy.answers_5xx + unanswered + repeated, own.errors + unanswered)
    good = min(proxy.answers_2xx, own.requests - own.errors)
    last = history[-1]
    recent = next(reading for reading in history if reading.at_s >= last.at_s - within_s)
    return Window(
        requests=max(0, good) + errors,
        errors=errors,
        restarts=max(0, last.slot.restarts - recent.slot.restarts),
        attempts=proxy.attempts,
        answered=proxy.answers_2xx + proxy.answers_4xx + proxy.answers_5xx,
        is_failed=last.slot.unit == "failed",
        unreadable=_unreadable(last.slot),
        contradiction=_contradiction(history, own, proxy),
    )


def windows(histories: Mapping[str, Sequence[Reading]], within_s: float) -> dict[str, Window]:
    """
    Return the window of each host of a wave.
    """
    return {host: counted(history, within_s) for host, history in histories.items()}


def pooled(of: Iterable[Window]) -> Window:
    """
    Return requests, errors and restarts of several hosts, added up.
    """
    hosts = list(of)
    return Window(
        requests=sum(w.requests for w in hosts),
        errors=sum(w.errors for w in hosts),
        restarts=sum(w.restarts for w in hosts),
    )


def _increase(readings: Sequence[Counters], make: type[Counters]) -> Counters:
    """
    Return by how much the counters rose over *readings*.

    Where one decreases, its process was started anew: all its counters are new then.
    """
    total = [0] * len(fields(make))
    for before, after in itertools.pairwise(map(_values, readings)):
        was_reset = _is_reset(before, after)
        for position, value in enumerate(after):
            total[position] += value if was_reset else value - before[position]
    return make(*total)


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


def _contradiction(
    history: Sequence[Reading], own: OwnCounters, proxy: ProxyCounters
) -> str | None:
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
    sent = proxy.attempts + whole[0][1].sessions
    if own.requests > _with_tolerance(sent):
        return f"the slot says that it answered {own.requests} requests, HAProxy sent it {sent}"
    if proxy.answers_5xx > _with_tolerance(own.answers_5xx):
        return (
            f"the slot says that it answered {own.answers_5xx} requests with 5xx, "
            f"HAProxy saw {proxy.answers_5xx}"
        )
    return None


def _with_tolerance(number: int) -> float:
    return number * (1 + _TOLERANCE_SHARE) + _TOLERANCE
