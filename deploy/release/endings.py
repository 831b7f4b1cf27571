"""
How a release or rollback ended: outcome, evidence and error.  Pure.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deploy.errors import (
    CommandFailed,
    DeployError,
    LeaseLost,
    NothingToRollBackTo,
    ReleaseReverted,
    RollbackFailed,
)
from deploy.release import verdicts
from deploy.release.desired import Desired, Ending, Goal
from deploy.release.events import ReleaseOutcome
from deploy.release.gates import Judgement, Verdict
from deploy.release.plan import FLEET, Action, Kind


def begin_data(desired: Desired) -> dict[str, Any]:
    """
    Return what the journals of the hosts record when *desired* begins.
    """
    plan = desired.plan
    data: dict[str, Any] = {
        "kind": str(plan.kind),
        "bundle": plan.bundle,
        "version": plan.version,
        "epoch": desired.epoch,
        "plan": plan.digest,
        "goal": str(desired.goal),
        "hosts": [host.host for host in plan.hosts],
    }
    if plan.to_release is not None:
        data["to_release"] = plan.to_release
    if plan.allow_older:
        data["permits_older"] = True
    if desired.reason:
        data["reason"] = desired.reason
    return data


def outcome(
    desired: Desired,
    states: Mapping[str, str],
    cause: Mapping[str, DeployError],
    failed: Mapping[str, DeployError],
    judgement: Judgement | None,
    *,
    has_started: bool,
) -> ReleaseOutcome:
    """
    Return how *desired* ended.

    Args:
        states: One word for each host.
        cause: Errors of hosts that turned the release round.
        failed: Errors of hosts that could not be brought where they should be.
        has_started: A host was changed.
    """
    ending = desired.ending or Ending.REVERTED
    error = _error(desired, ending, cause, failed, judgement, has_started=has_started)
    return ReleaseOutcome(
        release=desired.release,
        ending=ending,
        reason=reason_of(desired, cause),
        evidence=evidence(desired, states, {**cause, **failed}, ending),
        error=error,
        version=desired.plan.version,
        share=exposure(desired),
    )


def reason_of(desired: Desired, cause: Mapping[str, DeployError]) -> str:
    if desired.reason:
        return desired.reason
    if desired.plan.kind is Kind.ROLLBACK:
        return f"back to {desired.plan.version} ({desired.plan.to_release})"
    rulings = [ruling for ruling in desired.rulings if ruling.wave != FLEET]
    last = rulings[-1].reason if rulings else "nothing served before: golden answers only"
    return f"{last}{_left_out(desired)}"


def exposure(desired: Desired) -> str:
    """
    Return how far the release came, in words: "10 %", "10 % of wave 2", "100 %".
    """
    plan = desired.plan
    rulings = [ruling for ruling in desired.rulings if ruling.wave != FLEET]
    if not rulings:
        return "0 %"
    last = rulings[-1]
    if last.verdict == str(Verdict.PASS):
        return "100 %"
    return f"{plan.canary_pct} %" + (f" of wave {last.wave}" if last.wave > 1 else "")


def evidence(
    desired: Desired,
    states: Mapping[str, str],
    errors: Mapping[str, DeployError],
    ending: Ending,
) -> dict[str, Any]:
    """
    Return the numbers that decided, and the state that each host ended in.
    """
    plan = desired.plan
    waves = [
        {"canary_pct": plan.canary_pct, **asdict(ruling), "hosts": list(ruling.hosts)}
        for ruling in desired.rulings
    ]
    document: dict[str, Any] = {
        "waves": [wave for wave in waves if wave["wave"] != FLEET],
        "hosts": dict(states),
        "epoch": desired.epoch,
        "plan": plan.digest,
    }
    if bake := [wave for wave in waves if wave["wave"] == FLEET]:
        document["bake"] = bake[-1]
    if errors or ending in (Ending.REVERTED, Ending.PAUSED):
        document["errors"] = reasons(errors)
    if desired.left_out:
        document["left_out"] = dict(desired.left_out)
    if plan.to_release is not None:
        document["to"] = plan.to_release
    return document


def reasons(errors: Mapping[str, DeployError]) -> dict[str, str]:
    """
    Return what failed and why, by host.
    """
    return {name: f"{error.what}: {error.why}" for name, error in errors.items()}


def taken_over(release: str, cause: Exception) -> DeployError:
    return LeaseLost(
        f"{release}: another operator has taken over",
        why=str(cause),
        fix="nothing more was done here; inv status shows what the other operator does",
    )


def interrupted_rollback(release: str) -> DeployError:
    return RollbackFailed(
        f"{release}: interrupted",
        why="some hosts may be back and others not",
        fix="inv rollback continues it",
    )


def interrupted_way_back(release: str) -> DeployError:
    return RollbackFailed(
        f"{release}: interrupted on the way back",
        why="hosts that are not back yet go back by themselves when their lease has run out",
        fix="inv status shows them; inv rollback makes sure",
    )


def not_shown(host: str, action: Action) -> DeployError:
    return CommandFailed(
        f"{host}: {action.does}: it does not last",
        why="the host says that it was done, and does not show it afterwards",
        fix=f"look for what changes it back on {host}: another tool, or a slot that ends",
        host=host,
    )


def _error(
    desired: Desired,
    ending: Ending,
    cause: Mapping[str, DeployError],
    failed: Mapping[str, DeployError],
    judgement: Judgement | None,
    *,
    has_started: bool,
) -> DeployError | None:
    release, plan = desired.release, desired.plan
    if plan.kind is Kind.ROLLBACK:
        return _rollback_failed(release, failed) if failed else None
    if ending is Ending.PROMOTED:
        if failed:
            return verdicts.unretired(release, failed)
        return _behind(release, desired) if desired.left_out else None
    if ending is Ending.REVERTED and cause and not failed and not has_started:
        return verdicts.unstarted(release, cause)
    if judgement is None and desired.goal is Goal.BACK and not cause and not failed:
        return None  # an operator asked for it
    reason = reason_of(desired, cause)
    is_held = ending is Ending.PAUSED
    if is_held and judgement is None and not failed:
        return None
    return verdicts.ended(release, reason, judgement, failed, cause=cause, is_held=is_held)


def _rollback_failed(release: str, failed: Mapping[str, DeployError]) -> DeployError:
    first = failed[min(failed)]
    is_missing = all(isinstance(error, NothingToRollBackTo) for error in failed.values())
    again = "when the host answers: inv status, then inv rollback --to the same release"
    return RollbackFailed(
        f"{release}: could not roll back {', '.join(sorted(failed))}",
        why=f"{first.what}: {first.why}",
        fix=first.fix if is_missing else again,
    )


def _behind(release: str, desired: Desired) -> DeployError:
    return ReleaseReverted(
        f"{release}: promoted without {', '.join(sorted(desired.left_out))}",
        why="; ".join(f"{host}: {why}" for host, why in sorted(desired.left_out.items())),
        fix="they serve what they did before; inv resume brings them when they answer",
    )


def _left_out(desired: Desired) -> str:
    return f"; without {', '.join(sorted(desired.left_out))}" if desired.left_out else ""
