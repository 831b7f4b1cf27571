"""
Gates: from what a canary did on each host to pass, wait, pause or revert.  Pure.

These are the absolute gates: limits that hold whatever the stable release does.  A host may be
hostile, so that a wave passes only if its numbers hold without any one of its hosts, too.
docs/reference/gates.md has the rules and their reasons.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from deploy.foreign_text import listed
from deploy.inventory.schema import CanaryPolicy, ErrorRateGate, Gates
from deploy.release.evidence import RECENT_S, Window, pooled

# Chance of a false alarm of all hosts of a wave together, at the allowed error rate.
ALPHA = 0.001
_CANARY, _PROMOTED = "the canary", "the new slot"
# Requests without a good answer from which on a slot counts as hung or silent.
MISSING = 5
HUNG_S = 30.0  # shortest time for which a hung slot is waited for
DEAD_S = 10.0  # a promoted slot may be neither ready nor answer for so long


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
    windows: Mapping[str, Window],
    elapsed_s: float,
    policy: CanaryPolicy,
    gates: Gates,
    *,
    share_pct: int | None = None,
) -> Judgement:
    """
    Say whether the wave may go on, *elapsed_s* after its canary got traffic.

    Too few requests is WAIT and in the end PAUSE, never PASS: silence is not health.

    Args:
        windows: What the canary did, by host.
        share_pct: Of the traffic, that the canary gets; None: that of *policy*.
    """
    return (
        _stopped(windows, gates, _CANARY)
        or _error_rate(windows, gates.http_request_error_rate, _CANARY)
        or _refusals(windows, gates.http_request_error_rate)
        or _data(windows, elapsed_s, policy, share_pct or policy.share_pct)
    )


def judge_promoted(
    windows: Mapping[str, Window], elapsed_s: float, policy: CanaryPolicy, gates: Gates
) -> Judgement:
    """
    Say whether hosts whose new slot has all the traffic may keep it.

    REVERT is a stop whatever the action of the gate: there is no canary left to look at.  WAIT is
    nothing against them; PASS comes after the time of a canary, also where no traffic came.

    Args:
        windows: What the new slots did, by host.
        elapsed_s: Since the measurement began.
    """
    gate = gates.http_request_error_rate
    stopped = (
        _stopped(windows, gates, _PROMOTED)
        or _dead(windows, policy)
        or _error_rate(windows, gate, _PROMOTED)
        or _refusals_of_promoted(windows, gate)
    )
    if stopped is not None:
        return replace(stopped, verdict=Verdict.REVERT)
    missing = _missing(windows, _PROMOTED) or _silent_beside_others(windows)
    if missing:
        late = elapsed_s >= policy.give_up_after
        return Judgement(Verdict.PAUSE if late else Verdict.WAIT, "health", missing)
    if elapsed_s < policy.duration:
        left_s = policy.duration - elapsed_s
        return Judgement(
            Verdict.WAIT,
            "duration",
            f"promoted hosts are within their limits, {left_s:.0f} s to go",
        )
    fleet = pooled(windows.values())
    idle = sorted(host for host, window in windows.items() if not window.requests)
    note = f"; no traffic to judge on {listed(idle)}" if idle else ""
    return Judgement(
        Verdict.PASS,
        "all",
        f"{fleet.errors} of {fleet.requests} requests failed after the promotion "
        f"({fleet.error_rate:.1%}), {fleet.restarts} restarts{note}",
    )


def _stopped(windows: Mapping[str, Window], gates: Gates, who: str) -> Judgement | None:
    if failed := sorted(host for host, window in windows.items() if window.is_failed):
        where = ", ".join(failed)
        return Judgement(Verdict.REVERT, "unit", f"{who}'s unit failed on {where}")
    for host, window in sorted(windows.items()):
        if window.contradiction:
            reason = f"{host}: the numbers of {who} are false: {window.contradiction}"
            return Judgement(Verdict.REVERT, "evidence", reason)
    gate, restarts = gates.runtime_restarts, pooled(windows.values()).restarts
    if restarts > gate.max:
        return Judgement(
            Verdict(gate.action),
            "runtime_restarts",
            f"{restarts} restarts of {who}, {gate.max} allowed in {gate.within:.0f} s",
        )
    return None


def _error_rate(windows: Mapping[str, Window], gate: ErrorRateGate, who: str) -> Judgement | None:
    """
    Judge the wave's rate, the rate without each one host, and the errors of each host.
    """
    action, name = Verdict(gate.action), "http_request_error_rate"
    wave = pooled(windows.values())
    parts = {"": wave}
    if len(windows) > 1:
        for host in sorted(windows):
            parts[f" without {host}"] = _without(wave, windows[host])
    for part, window in parts.items():
        if window.requests >= gate.min_requests and window.error_rate > gate.max:
            return Judgement(action, name, f"{_failed(window, gate, who)}{part}")
    for host, window in sorted(windows.items()):
        if len(windows) > 1 and _is_no_chance(window, gate.max, ALPHA / len(windows)):
            return Judgement(action, name, f"{host}: {_failed(window, gate, who)}")
        last = Window(window.recent_requests, window.recent_errors, 0)
        is_enough = last.requests >= gate.min_requests
        if is_enough and _is_no_chance(last, gate.max, ALPHA / len(windows)):
            lately = f"{host}: in the last {RECENT_S:.0f} s, {_failed(last, gate, who)}"
            return Judgement(action, name, lately)
    return None


def _refusals(windows: Mapping[str, Window], gate: ErrorRateGate) -> Judgement | None:
    """
    Judge the share of requests that a canary refuses, beside that of the stable slot.

    Both get the same mixture of clients, so that no client changes one share alone.
    """
    for host, window in sorted(windows.items()):
        beside = window.beside
        if beside is None:
            continue
        asked = window.good + window.errors + window.refused
        asked_beside = beside.good + beside.refused
        shares = _Shares(window.refused, asked, beside.refused, asked_beside)
        if shares.differ(gate, ALPHA / len(windows)):
            reason = f"{host}: the canary refused {shares} of the stable slot beside it"
            return Judgement(Verdict(gate.action), "refusals", reason)
    return None


def _refusals_of_promoted(windows: Mapping[str, Window], gate: ErrorRateGate) -> Judgement | None:
    """
    Judge the share of 5xx that a host excuses, beside that of all others.

    Clients may aim at one host.  A host that gives half the good answers of the others refuses
    more than what was aimed at it.
    """
    if len(windows) < 2:
        return None
    total = pooled(windows.values())
    for host, window in sorted(windows.items()):
        good, excused = total.good - window.good, total.excused - window.excused
        if 2 * window.good > good / (len(windows) - 1):
            continue
        asked = window.requests + window.excused
        shares = _Shares(window.excused, asked, excused, good + excused)
        if shares.differ(gate, ALPHA / len(windows)):
            reason = f"{host}: the new slot refused {shares} of the other hosts"
            return Judgement(Verdict(gate.action), "refusals", reason)
    return None


class _Shares(NamedTuple):
    """
    Refused requests of all, and those of what is beside it.
    """

    refused: int
    asked: int
    refused_beside: int
    asked_beside: int

    def differ(self, gate: ErrorRateGate, alpha: float) -> bool:
        """
        Return whether more than twice the other share is refused, and chance does not explain it.
        """
        if self.asked < gate.min_requests:
            return False
        # With one more refusal: what was hardly asked does not say what is usual.
        usual = (self.refused_beside + 1) / (self.asked_beside + 1)
        allowed = 2 * usual + gate.max
        return allowed < 1 and _is_no_chance(Window(self.asked, self.refused, 0), allowed, alpha)

    def __str__(self) -> str:
        return (
            f"{self.refused} of {self.asked} requests, beside {self.refused_beside} "
            f"of {self.asked_beside}"
        )


def _dead(windows: Mapping[str, Window], policy: CanaryPolicy) -> Judgement | None:
    """
    Return the first promoted host that is not ready and answers nothing, or is hung.
    """
    for host, window in sorted(windows.items()):
        if min(window.unready_s, window.quiet_s) >= DEAD_S:
            why = window.unreadable or "it is not ready"
            reason = f"{host}: no good answer for {window.quiet_s:.0f} s, and {why}"
            return Judgement(Verdict.REVERT, "health", reason)
    return _hung_for_long(windows, policy, _PROMOTED)


def _hung_for_long(
    windows: Mapping[str, Window], policy: CanaryPolicy, who: str
) -> Judgement | None:
    for host, window in sorted(windows.items()):
        if _is_hung(window) and window.quiet_s >= max(HUNG_S, policy.duration):
            reason = f"{host}: {_hung(window, who)}"
            return Judgement(Verdict.PAUSE, "health", reason)
    return None


def _is_hung(window: Window) -> bool:
    return window.unanswered >= MISSING


def _hung(window: Window, who: str) -> str:
    if not window.answered:
        return f"{who} answered none of {window.attempts} requests"
    return (
        f"no good answer of {who} for {window.quiet_s:.0f} s, and none at all to "
        f"{window.unanswered} requests sent meanwhile"
    )


def _without(wave: Window, window: Window) -> Window:
    """
    Return *wave* without one of its hosts.
    """
    return Window(wave.requests - window.requests, wave.errors - window.errors, 0)


def _failed(window: Window, gate: ErrorRateGate, who: str) -> str:
    requests = "canary requests" if who == _CANARY else f"requests to {who}"
    return (
        f"{window.errors} of {window.requests} {requests} failed "
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


def _data(
    windows: Mapping[str, Window], elapsed_s: float, policy: CanaryPolicy, share_pct: int
) -> Judgement:
    """
    Judge whether there is enough data to pass, on every host that has traffic, up to now.
    """
    if hung := _hung_for_long(windows, policy, _CANARY):
        return hung
    wave = pooled(windows.values())
    progress = f"{wave.requests} of {policy.min_requests} requests"
    missing = _missing(windows, _CANARY) or _silent(windows, share_pct)
    if wave.requests < policy.min_requests or missing:
        gate = "health" if missing else "min_requests"
        if elapsed_s >= policy.give_up_after:
            problem = missing or f"the canary had {progress} in {elapsed_s:.0f} s"
            return Judgement(Verdict.PAUSE, gate, f"not enough data: {problem}")
        waits = missing or f"the canary has had {progress}"
        return Judgement(Verdict.WAIT, gate, waits)
    if elapsed_s < policy.duration:
        left_s = policy.duration - elapsed_s
        return Judgement(Verdict.WAIT, "duration", f"within its limits, {left_s:.0f} s to go")
    return Judgement(
        Verdict.PASS,
        "all",
        f"{wave.errors} of {wave.requests} canary requests failed ({wave.error_rate:.1%}), "
        f"{wave.restarts} restarts{_thin(windows, policy)}",
    )


def _missing(windows: Mapping[str, Window], who: str) -> str | None:
    """
    Return the first host that does not show that it is well now; None without one.
    """
    for host, window in sorted(windows.items()):
        if window.unreadable:
            return f"{host}: {who} cannot be measured: {window.unreadable}"
        if not window.is_ready:
            return f"{host}: {who} is not ready"
        if _is_hung(window) or (window.attempts and not window.answered):
            return f"{host}: {_hung(window, who)}"
    return None


def _silent(windows: Mapping[str, Window], share_pct: int) -> str | None:
    """
    Return the first host whose canary gives no good answers while the stable slot does.
    """
    for host, window in sorted(windows.items()):
        beside = window.beside
        if beside is None:
            continue
        before = beside.good - beside.good_since
        # What the canary had of the traffic while it answered, or should have had from the start.
        is_known = window.good >= MISSING and before > 0
        ratio = window.good / before if is_known else share_pct / (100 - share_pct)
        if beside.good_since * ratio >= MISSING:
            return (
                f"{host}: no good answer of the canary for {window.quiet_s:.0f} s, and "
                f"{beside.good_since} of the stable slot"
            )
    return None


def _silent_beside_others(windows: Mapping[str, Window]) -> str | None:
    """
    Return the first host that had traffic and fell silent, while other hosts have traffic.
    """
    recent = pooled(windows.values()).recent_requests
    for host, window in sorted(windows.items()):
        active_s = window.span_s - window.quiet_s
        if active_s <= 0 or window.quiet_s < RECENT_S or recent <= window.recent_requests:
            continue
        if window.good * window.quiet_s / active_s >= MISSING:
            return f"{host}: no good answer for {window.quiet_s:.0f} s, and other hosts have some"
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
