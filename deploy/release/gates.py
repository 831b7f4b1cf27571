"""
Gates: from what a canary did on each host to pass, wait, pause or revert.  Pure.

These are the absolute gates: limits that hold whatever the stable release does.  A host may be
hostile, so that a wave passes only if its numbers hold without any one of its hosts, too.
docs/reference/gates.md has the rules and their reasons.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deploy.inventory.schema import CanaryPolicy, ErrorRateGate, Gates
from deploy.release.evidence import Window, pooled

# Chance of a false alarm of all hosts of a wave together, at the allowed error rate.
ALPHA = 0.001


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - no password
    WAIT = "wait"
    PAUSE = "pause"
    REVERT = "revert"


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


def judge(
    windows: Mapping[str, Window], elapsed_s: float, policy: CanaryPolicy, gates: Gates
) -> Judgement:
    """
    Say whether the wave may go on, *elapsed_s* after its canary got traffic.

    Too few requests is WAIT and in the end PAUSE, never PASS: silence is not health.

    Args:
        windows: What the canary did, by host.
    """
    return (
        _stopped(windows, gates)
        or _error_rate(windows, gates.http_request_error_rate)
        or _data(windows, elapsed_s, policy)
    )


def judge_promoted(
    windows: Mapping[str, Window], elapsed_s: float, policy: CanaryPolicy, gates: Gates
) -> Judgement:
    """
    Say whether hosts that have been promoted may keep the release; nothing serves beside it there.

    Args:
        windows: What the new release did, by host.
    """
    stopped = _stopped(windows, gates) or _error_rate(windows, gates.http_request_error_rate)
    if stopped is not None:
        return Judgement(Verdict.REVERT, stopped.gate, stopped.reason)
    if elapsed_s < policy.duration:
        left_s = policy.duration - elapsed_s
        return Judgement(Verdict.WAIT, "duration", f"within its limits, {left_s:.0f} s to go")
    wave = pooled(windows.values())
    return Judgement(
        Verdict.PASS, "all", f"{wave.errors} of {wave.requests} requests failed after promotion"
    )


def _stopped(windows: Mapping[str, Window], gates: Gates) -> Judgement | None:
    if failed := sorted(host for host, window in windows.items() if window.is_failed):
        where = ", ".join(failed)
        return Judgement(Verdict.REVERT, "unit", f"the canary's unit failed on {where}")
    for host, window in sorted(windows.items()):
        if window.contradiction:
            reason = f"{host}: the numbers of the canary are false: {window.contradiction}"
            return Judgement(Verdict.REVERT, "evidence", reason)
    gate, restarts = gates.runtime_restarts, pooled(windows.values()).restarts
    if restarts > gate.max:
        return Judgement(
            Verdict(gate.action),
            "runtime_restarts",
            f"{restarts} restarts of the canary, {gate.max} allowed in {gate.within:.0f} s",
        )
    return None


def _error_rate(windows: Mapping[str, Window], gate: ErrorRateGate) -> Judgement | None:
    """
    Judge the wave's rate, the rate without each one host, and the errors of each host.
    """
    action, name = Verdict(gate.action), "http_request_error_rate"
    wave = pooled(windows.values())
    parts = {"": wave}
    if len(windows) > 1:
        for host in sorted(windows):
            rest = pooled(window for other, window in windows.items() if other != host)
            parts[f" without {host}"] = rest
    for part, window in parts.items():
        if window.requests >= gate.min_requests and window.error_rate > gate.max:
            return Judgement(action, name, f"{_failed(window, gate)}{part}")
    if len(windows) > 1:
        for host, window in sorted(windows.items()):
            if _is_no_chance(window, gate.max, ALPHA / len(windows)):
                return Judgement(action, name, f"{host}: {_failed(window, gate)}")
    return None


def _failed(window: Window, gate: ErrorRateGate) -> str:
    return (
        f"{window.errors} of {window.requests} canary requests failed "
        f"({window.error_rate:.1%}, {gate.max:.1%} allowed)"
    )


def _is_no_chance(window: Window, allowed: float, alpha: float) -> bool:
    """
    Return whether so many errors have a probability below *alpha* at the *allowed* rate.

    Source: the Chernoff bound of a binomial tail, P(X >= k) <= exp(-n KL(k/n || p)), which is
    above the exact probability: it never alarms where the exact test would not.
    """
    rate = window.error_rate
    if rate <= allowed:
        return False
    if allowed == 0:
        return True
    distance = rate * math.log(rate / allowed)
    if rate < 1:
        distance += (1 - rate) * math.log((1 - rate) / (1 - allowed))
    return window.requests * distance > -math.log(alpha)


def _data(windows: Mapping[str, Window], elapsed_s: float, policy: CanaryPolicy) -> Judgement:
    """
    Judge whether there is enough data to pass, on every host that has traffic.
    """
    wave = pooled(windows.values())
    progress = f"{wave.requests} of {policy.min_requests} requests"
    missing = _missing(windows)
    if wave.requests < policy.min_requests or missing:
        if elapsed_s >= policy.give_up_after:
            problem = missing or f"the canary had {progress} in {elapsed_s:.0f} s"
            return Judgement(Verdict.PAUSE, "min_requests", f"not enough data: {problem}")
        waits = missing or f"the canary has had {progress}"
        return Judgement(Verdict.WAIT, "min_requests", waits)
    if elapsed_s < policy.duration:
        left_s = policy.duration - elapsed_s
        return Judgement(Verdict.WAIT, "duration", f"within its limits, {left_s:.0f} s to go")
    return Judgement(
        Verdict.PASS,
        "all",
        f"{wave.errors} of {wave.requests} canary requests failed ({wave.error_rate:.1%}), "
        f"{wave.restarts} restarts{_thin(windows, policy)}",
    )


def _missing(windows: Mapping[str, Window]) -> str | None:
    """
    Return the first host that shows nothing, or whose canary answers nothing; None without one.
    """
    for host, window in sorted(windows.items()):
        if window.unreadable:
            return f"{host}: the canary cannot be measured: {window.unreadable}"
        if window.attempts and not window.answered:
            return f"{host}: the canary answered none of {window.attempts} requests"
    return None


def _thin(windows: Mapping[str, Window], policy: CanaryPolicy) -> str:
    """
    Name the hosts of a wave that had less than their share of the requests that it needs.
    """
    share = policy.min_requests / max(1, len(windows))
    thin = {host: w.requests for host, w in sorted(windows.items()) if w.requests < share}
    if not thin:
        return ""
    named = ", ".join(f"{host} ({requests} requests)" for host, requests in thin.items())
    return f"; too little data to judge alone: {named}"
