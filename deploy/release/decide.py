"""
What to do next, from what the fleet should be and what it is.  Pure.

The controller asks after each observation; whoever asks gets the same answer, so that any operator
can go on with what another one began.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from deploy.host.protocol import GoodRelease
from deploy.release.desired import Desired, Ending, Goal
from deploy.release.observe import Observed, needs_reviving
from deploy.release.plan import FLEET, Action, HostPlan, Kind, Step

Done = Collection[tuple[Step, str]]


@dataclass(frozen=True, slots=True)
class Decision:
    """
    Attributes:
        actions: To do now; those of one host in their order, hosts at the same time.
        measure: The wave to measure until its verdict, or FLEET: all hosts; None: nothing.
        ending: All is as it should be.
    """

    actions: tuple[Action, ...] = ()
    measure: int | None = None
    ending: Ending | None = None


def decide(desired: Desired, observed: Mapping[str, Observed], done: Done = ()) -> Decision:
    """
    Return what follows.

    Args:
        observed: The hosts of the plan that answer; nothing follows for the others.
        done: What this operator has done that a host does not show, or that is done once.
    """
    if desired.goal is Goal.FORWARD:
        return _forward(desired, observed, done)
    if desired.goal is Goal.HELD:
        actions = _each(desired, observed, Step.HOLD, _is_held)
        return Decision(actions, ending=None if actions else Ending.PAUSED)
    actions = _each(desired, observed, Step.TAKE_BACK, _is_back)
    return Decision(actions, ending=None if actions else Ending.REVERTED)


def is_converged(desired: Desired, host: HostPlan, current: Observed) -> bool:
    """
    Return whether a host is as an ended *desired* says.
    """
    if desired.ending in (Ending.PROMOTED, Ending.ROLLED_BACK):
        return _serves_alone(desired, host, current)
    if desired.goal is Goal.HELD:
        return _is_held(desired, host, current)
    return _is_back(desired, host, current)


# -- forward


def _forward(desired: Desired, observed: Mapping[str, Observed], done: Done) -> Decision:
    plan = desired.plan
    # Hosts that the release goes on without are taken back beside it.
    behind = {name: observed[name] for name in desired.left_out if name in observed}
    aside = _each(desired, behind, Step.TAKE_BACK, _is_back) if plan.kind is Kind.RELEASE else ()
    if aside:
        return Decision(aside)
    for stage in plan.stages:
        first = stage[0]
        if first.step in (Step.JUDGE, Step.BAKE):
            if not desired.passed(first.wave) and _has_measured(desired, first.wave, observed):
                return Decision(measure=first.wave)
            continue
        actions = tuple(
            action
            for action in stage
            if action.host is not None
            and action.host not in desired.left_out
            and action.host in observed
            and not _is_done(action, desired, observed[action.host], done)
        )
        if actions:
            return Decision(actions)
    is_rollback = plan.kind is Kind.ROLLBACK
    return Decision(ending=Ending.ROLLED_BACK if is_rollback else Ending.PROMOTED)


def _has_measured(desired: Desired, wave: int, observed: Mapping[str, Observed]) -> bool:
    """
    Return whether a host is left that *wave* is judged by.

    Where all of them were lost, the next wave has a canary and a verdict of its own.
    """
    names = desired.plan.waves[wave - 1] if wave != FLEET else desired.plan.by_name
    left = [name for name in names if name in observed and name not in desired.left_out]
    return any(wave == FLEET or desired.plan.host(name).has_stable for name in left)


def _is_done(action: Action, desired: Desired, current: Observed, done: Done) -> bool:
    assert action.host is not None
    if (action.step, action.host) in done:
        return True
    host = desired.plan.host(action.host)
    to, other = current.slot(host.to_slot), current.slot(host.other_slot)
    serves = to.bundle == desired.plan.bundle and to.weight_pct == 100
    is_kept = serves and is_confirmed(desired, current)
    runs = to.bundle == desired.plan.bundle and to.unit == "active"
    match action.step:
        case Step.REVIVE:
            return needs_reviving(current) is None
        case Step.STAGE:
            return desired.plan.bundle in current.staged
        case Step.ARM_BACK:
            return is_kept or (runs and to.is_ready) or _is_armed(desired, current)
        case Step.ARM:
            return is_kept or (_is_armed(desired, current) and _leaves(desired, host, current))
        case Step.CLEAR:
            return is_kept or runs or to.is_idle
        case Step.START:
            return is_kept or (runs and to.is_ready)
        case Step.GOLDEN:
            return is_kept or serves or desired.passed(desired.plan.wave_of(action.host))
        case Step.CANARY:
            share = desired.plan.canary_pct
            is_split = (to.weight_pct, other.weight_pct) == (share, 100 - share)
            return (runs and is_split) or desired.passed(action.wave)
        case Step.PROMOTE:
            return serves and other.weight_pct == 0
        case Step.CHECK | Step.CONFIRM:
            return is_kept
        case Step.RETIRE:
            return other.is_idle
    raise ValueError(f"no plan has the step {action.step}")


def _is_armed(desired: Desired, current: Observed) -> bool:
    pending = current.pending
    return (
        pending is not None
        and pending.release == desired.release
        and pending.epoch == desired.epoch
    )


def _leaves(desired: Desired, host: HostPlan, current: Observed) -> bool:
    """
    Return whether the host's own way leads where the plan says; that of a rollback is turned.
    """
    assert current.pending is not None
    is_rollback = desired.plan.kind is Kind.ROLLBACK
    return not is_rollback or current.pending.to_slot == host.other_slot


def is_confirmed(desired: Desired, current: Observed) -> bool:
    """
    Return whether the host has recorded the release as good and does not go back any more.
    """
    if current.pending is not None or not current.good:
        return False
    if desired.plan.kind is Kind.ROLLBACK:
        return current.good[-1].bundle == desired.plan.bundle
    return current.good[-1].release == desired.release


def _serves_alone(desired: Desired, host: HostPlan, current: Observed) -> bool:
    to, other = current.slot(host.to_slot), current.slot(host.other_slot)
    is_warm = desired.plan.rules.keep_old == "warm" and other.weight_pct == 0
    return (
        to.bundle == desired.plan.bundle
        and to.weight_pct == 100
        and current.pending is None
        and (other.is_idle or is_warm)
    )


# -- back


def _each(
    desired: Desired,
    observed: Mapping[str, Observed],
    step: Step,
    is_there: Callable[[Desired, HostPlan, Observed], bool],
) -> tuple[Action, ...]:
    deadlines = desired.plan.deadlines
    does, deadline_s = {
        Step.HOLD: (
            "give what served before all the traffic, keep the new slot warm",
            deadlines.hold,
        ),
        Step.TAKE_BACK: (
            "give what served before all the traffic, stop the new slot",
            deadlines.take_back,
        ),
    }[step]
    return tuple(
        Action(step, host.host, FLEET, does, "", deadline_s)
        for host in desired.plan.hosts
        if host.host in observed and not is_there(desired, host, observed[host.host])
    )


def _is_back(desired: Desired, host: HostPlan, current: Observed) -> bool:
    """
    Return whether a host serves what it did before; also one that was never touched.
    """
    to = current.slot(host.to_slot)
    if _is_ours(desired, current) or good_before(desired.release, current) is not None:
        return False
    if to.bundle != desired.plan.bundle or host.from_bundle == desired.plan.bundle:
        return True
    return to.is_idle


def _is_held(desired: Desired, host: HostPlan, current: Observed) -> bool:
    to = current.slot(host.to_slot)
    if _is_ours(desired, current) or good_before(desired.release, current) is not None:
        return False
    return to.bundle != desired.plan.bundle or not to.has_traffic


def good_before(release: str, current: Observed) -> GoodRelease | None:
    """
    Return the good release that is the last one again, once a host has forgotten *release*.

    None where the last one is another already, or there is no earlier one.
    """
    if not current.good or current.good[-1].release != release:
        return None
    earlier = [good for good in current.good if good.release != release]
    return earlier[-1] if earlier else None


def _is_ours(desired: Desired, current: Observed) -> bool:
    return current.pending is not None and current.pending.release == desired.release
