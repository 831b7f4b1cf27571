"""
Gates: from what a canary measured to pass, wait, pause or revert.  Pure.

These are the absolute gates: limits that hold whatever the stable release does.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deploy.inventory.schema import CanaryPolicy, Gates


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - no password
    WAIT = "wait"
    PAUSE = "pause"
    REVERT = "revert"


@dataclass(frozen=True, slots=True)
class Reading:
    """
    One slot's cumulative counters on one host, as read at one moment.

    Attributes:
        at_s: When, on the controller's monotonic clock.
        requests: Requests to the generating routes that the slot answered since it started.
        errors: Those that it answered with a 5xx.
        broken: Requests that HAProxy could not bring to the slot or got no answer to; these
            are not among `requests`, and this counter outlives a restart of the slot.
        restarts: Restarts of the slot's unit since it was started for this release.
        is_whole: Slot and HAProxy both answered; without, the counters say nothing.
        is_ready: It answered its readiness check.
        is_failed: Its unit is in systemd's state "failed".
    """

    at_s: float
    requests: int
    errors: int
    broken: int
    restarts: int
    is_whole: bool
    is_ready: bool
    is_failed: bool


@dataclass(frozen=True, slots=True)
class Window:
    """
    What the canary of one wave did between two readings, summed over its hosts.
    """

    requests: int
    errors: int
    restarts: int
    failed: tuple[str, ...] = ()  # hosts whose canary unit is down for good

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """
    A verdict and why, with the numbers that led to it.

    Attributes:
        gate: Name of the gate that decided, as in the fleet file.
        reason: One line, printed as it is.
    """

    verdict: Verdict
    gate: str
    reason: str


def counted(history: Sequence[Reading], within_s: float) -> Window:
    """
    Return what one slot did over *history*, oldest reading first; restarts over *within_s* only.

    A counter that decreases was reset by a restart of the slot: its whole value is new.
    A broken request counts as one request and one error.
    """
    if not history:
        return Window(0, 0, 0)
    requests = errors = broken = 0
    whole = [reading for reading in history if reading.is_whole]
    for before, after in itertools.pairwise(whole):
        more, failed = after.requests - before.requests, after.errors - before.errors
        was_reset = more < 0 or not 0 <= failed <= more
        requests += after.requests if was_reset else more
        errors += after.errors if was_reset else failed
        broken += max(0, after.broken - before.broken)
    last = history[-1]
    recent = next(reading for reading in history if reading.at_s >= last.at_s - within_s)
    return Window(requests + broken, errors + broken, max(0, last.restarts - recent.restarts))


def summed(histories: Mapping[str, Sequence[Reading]], within_s: float) -> Window:
    """
    Return the windows of all hosts of a wave, added up.
    """
    windows = [counted(history, within_s) for history in histories.values()]
    failed = [host for host, history in histories.items() if history and history[-1].is_failed]
    return Window(
        requests=sum(w.requests for w in windows),
        errors=sum(w.errors for w in windows),
        restarts=sum(w.restarts for w in windows),
        failed=tuple(sorted(failed)),
    )


def judge(window: Window, elapsed_s: float, policy: CanaryPolicy, gates: Gates) -> Judgement:
    """
    Say whether the wave may go on, *elapsed_s* after its canary got traffic.

    Too few requests is WAIT and in the end PAUSE, never PASS: silence is not health.
    """
    if window.failed:
        where = ", ".join(window.failed)
        return Judgement(Verdict.REVERT, "unit", f"the canary's unit failed on {where}")

    gate = gates.runtime_restarts
    if window.restarts > gate.max:
        return Judgement(
            Verdict(gate.action),
            "runtime_restarts",
            f"{window.restarts} restarts of the canary, {gate.max} allowed in {gate.within:.0f} s",
        )

    rate = gates.http_request_error_rate
    if window.requests >= rate.min_requests and window.error_rate > rate.max:
        return Judgement(
            Verdict(rate.action),
            "http_request_error_rate",
            f"{window.errors} of {window.requests} canary requests failed "
            f"({window.error_rate:.1%}, {rate.max:.1%} allowed)",
        )

    progress = f"{window.requests} of {policy.min_requests} requests"
    if window.requests < policy.min_requests:
        if elapsed_s >= policy.give_up_after:
            reason = f"not enough data: the canary had {progress} in {elapsed_s:.0f} s"
            return Judgement(Verdict.PAUSE, "min_requests", reason)
        return Judgement(Verdict.WAIT, "min_requests", f"the canary has had {progress}")
    if elapsed_s < policy.duration:
        left_s = policy.duration - elapsed_s
        return Judgement(Verdict.WAIT, "duration", f"within its limits, {left_s:.0f} s to go")
    return Judgement(
        Verdict.PASS,
        "all",
        f"{window.errors} of {window.requests} canary requests failed ({window.error_rate:.1%}), "
        f"{window.restarts} restarts",
    )
