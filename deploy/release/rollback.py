"""
Back to a release that was recorded as good: no build, no download, no canary.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from deploy.errors import DeployError, PreconditionError, TransportError
from deploy.host.protocol import GoodRelease
from deploy.inventory.as_file import as_file
from deploy.inventory.schema import ReleasePolicy
from deploy.release.desired import Desired
from deploy.release.observe import Observed
from deploy.release.plan import HostPlan, Kind, ReleasePlan, host_plan
from deploy.release.targets import HostTarget, Targets, Way, plan_targets


@dataclass(frozen=True, slots=True)
class LeftOut:
    """
    A host that a rollback does not bring to its target.

    Attributes:
        error: Why; None where nothing serves, so that there is nothing to take back.
        stop_traffic: It serves what the others leave: its traffic is taken off.
    """

    host: str
    why: str
    error: DeployError | None
    stop_traffic: bool = False


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """
    Attributes:
        target: The release as most of its hosts have it on record.
        left_out: Hosts that cannot go back to it; the others do not wait for them.
        allow_older: A host has the target not on its own record, where it may be older than what
            that host recorded as good.
        seen: What it was planned from: the hosts as they were, or the errors of those that could
            not be read.
    """

    target: GoodRelease | None
    hosts: tuple[HostPlan, ...]
    reason: str
    left_out: tuple[LeftOut, ...] = ()
    allow_older: bool = False
    seen: Mapping[str, Observed | DeployError] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def is_noop(self) -> bool:
        return not self.hosts


def plan_rollback(
    observed: Mapping[str, Observed],
    to: str | None = None,
    unreadable: Mapping[str, DeployError] | None = None,
    in_store: Mapping[str, str] | None = None,
    *,
    leaving: str | None = None,
) -> RollbackPlan:
    """
    Return the way back of every host.  Pure.

    `plan_targets` has the rules.  A host that serves the target alone is not touched.  A host that
    cannot be read, or cannot get the target, is left out and named.

    Args:
        to: Release id, version or digest of another target.
        unreadable: Hosts that could not be observed, with their errors.
        in_store: Versions of the operator's bundles for this fleet, by digest.
        leaving: Bundle that the fleet leaves, where the desired state has it.

    Raises:
        NothingToRollBackTo: No host has such a release on record, or the hosts do not agree.
        UsageError: *to* is empty, or a name of more than one bundle.
        DeployError: No host can be read; or those that can serve the target already.
    """
    unreadable = unreadable or {}
    if not observed and not unreadable:
        return RollbackPlan(None, (), "no hosts")
    targets = plan_targets(observed, to, unreadable, in_store or {}, leaving=leaving)
    if not targets.of(Way.GO, Way.STAGE_FIRST):
        for error in targets.errors.values():
            raise error
    return replace(_way(targets, observed), seen={**observed, **unreadable})


def plan_left_out(
    desired: Desired,
    observed: Mapping[str, Observed],
    unreadable: Mapping[str, DeployError],
    in_store: Mapping[str, str],
) -> RollbackPlan:
    """
    Return the way of the hosts that the rollback *desired* was planned without.  Pure.

    Args:
        observed: All hosts that answer: what most of them have on record counts.
        unreadable, in_store: As of `plan_rollback`.

    Raises:
        NothingToRollBackTo: No host has the target on record.
        DeployError: No host can be read.
    """
    leaving = _left_by(desired.plan)
    targets = plan_targets(observed, desired.plan.bundle, unreadable, in_store, leaving=leaving)
    missing = unplanned(desired)
    hosts = tuple(host for host in targets.hosts if host.host in missing)
    return _way(replace(targets, hosts=hosts), observed)


def unplanned(desired: Desired) -> tuple[str, ...]:
    """
    Return the hosts that a rollback was planned without, because they did not answer or could not
    get its target: it has no actions for them, and whoever resumes it plans them.
    """
    return tuple(host for host in desired.left_out if host not in desired.plan.by_name)


def with_left_out(desired: Desired, way: RollbackPlan) -> Desired:
    """
    Return the rollback *desired* with the hosts of *way* in its plan, and with those left out that
    *way* leaves out.
    """
    plan = desired.plan
    hosts = (*plan.hosts, *way.hosts)
    plan = replace(
        plan,
        hosts=hosts,
        waves=(tuple(host.host for host in hosts),),
        allow_older=plan.allow_older or way.allow_older,
    )
    return replace(desired, plan=plan, left_out={left.host: left.why for left in way.left_out})


def _way(targets: Targets, observed: Mapping[str, Observed]) -> RollbackPlan:
    going = targets.of(Way.GO, Way.STAGE_FIRST)
    return RollbackPlan(
        targets.target,
        tuple(_host(observed[host.host], host) for host in going),
        targets.reason,
        tuple(
            LeftOut(left.host, left.why, left.error, left.stop_traffic)
            for left in targets.of(Way.LEFT_OUT)
        ),
        any(not host.is_recorded for host in going),
    )


def _host(current: Observed, part_of: HostTarget) -> HostPlan:
    target = part_of.target
    warm = next(
        (s for s in current.slots if s.bundle == target.bundle and s.unit == "active"), None
    )
    to = warm if warm is not None and warm.is_ready else current.spare
    part = host_plan(current, current.kept, to)
    other_ready = current.slot(part.other_slot).is_ready
    return replace(
        part,
        clear_first=to is not warm and not to.is_idle,
        from_ready=other_ready,
        to_release=target.release,
        revive=part_of.revive is not None,
    )


def rollback_plan(
    way: RollbackPlan, *, fleet: str, policy: ReleasePolicy, start_s: float, golden_s: float
) -> ReleasePlan:
    """
    Return the actions of *way*, which goes somewhere.
    """
    assert way.target is not None
    return ReleasePlan(
        kind=Kind.ROLLBACK,
        fleet=fleet,
        bundle=way.target.bundle,
        version=way.target.version,
        canary_pct=0,
        waves=(tuple(host.host for host in way.hosts),),
        hosts=way.hosts,
        unchanged=(),
        policy=as_file(policy),
        start_s=float(start_s),
        golden_s=float(golden_s),
        allow_older=way.allow_older,
        to_release=way.target.release,
    )


def implied_target(desired: Desired | None) -> str | None:
    """
    Return the digest of the bundle that a plain rollback goes to by the fleet's desired state.

    A release that has not ended goes back to what most of its hosts served before; a way back that
    has not ended goes on.  None: no release is open, so that the hosts' records decide.
    """
    if desired is None or desired.ending is not None:
        return None
    if desired.plan.kind is Kind.ROLLBACK:
        return desired.plan.bundle
    before = Counter(host.from_bundle for host in desired.plan.hosts if host.from_bundle)
    if not before:
        return None
    bundle, hosts = before.most_common(1)[0]
    return bundle if 2 * hosts > len(desired.plan.hosts) else None


def implied_leaving(desired: Desired | None) -> str | None:
    """
    Return the digest of the bundle that the fleet leaves by its desired state; None: it says none.

    That of a release that has not ended; of a rollback that has not, what most of its hosts served
    before.
    """
    if desired is None or desired.ending is not None:
        return None
    plan = desired.plan
    return _left_by(plan) if plan.kind is Kind.ROLLBACK else plan.bundle


def _left_by(rollback: ReleasePlan) -> str | None:
    """
    Return the digest of the bundle that most hosts of *rollback* served before it.

    Once they have arrived, what they serve does not tell any more.
    """
    leaving = served_before(rollback)
    return leaving if leaving != rollback.bundle else None


def served_before(plan: ReleasePlan) -> str | None:
    """
    Return the digest of the bundle that most hosts of *plan* served before it; None: none did.
    """
    before = Counter(host.from_bundle for host in plan.hosts if host.from_bundle)
    return before.most_common(1)[0][0] if before else None


def as_now(
    plan: ReleasePlan, now: RollbackPlan, left_out: Collection[str] = ()
) -> dict[str, DeployError]:
    """
    Return an error for each host that is no longer as *plan* assumed.

    Slots may start, stop and become ready between the two, and what serves may end.  Nothing else
    may serve.  A host that the plan does not touch, because it served the target, still has to.

    Args:
        left_out: Hosts that *plan* was made without.

    Raises:
        PreconditionError: More than half of the hosts of *plan* have changed.
    """
    parts = {host.host: host for host in now.hosts}
    without = {left.host: left for left in now.left_out}
    errors: dict[str, DeployError] = {}
    for host in plan.hosts:
        part, left = parts.get(host.host), without.get(host.host)
        if part is None and left is None:
            continue  # it is there already
        if part is None or part.from_version not in (None, host.from_version):
            why = f"it does not serve {host.from_version} any more"
            errors[host.host] = _changed(host.host, left, why)
    # Those that do not answer are no reason to leave the others.
    changed = [one for one in errors.values() if not isinstance(one, TransportError)]
    if 2 * len(changed) > len(plan.hosts):
        raise PreconditionError(
            "the hosts are not any more as the rollback assumed",
            why=f"the way back is now: {now.reason}",
            fix="inv rollback again",
        )
    for name in sorted({*parts, *without} - {*plan.by_name, *left_out}):
        left = without.get(name)
        if left is None or left.error is not None:
            why = f"it does not serve {plan.version} alone any more"
            errors[name] = _changed(name, left, why)
    return errors


def _changed(host: str, left: LeftOut | None, why: str) -> DeployError:
    """
    Return the error of a host that is left out now, or else is not as assumed, which *why* says.
    """
    if left is not None and isinstance(left.error, TransportError):
        return left.error
    return PreconditionError(
        f"{host}: it is not any more as the rollback assumed",
        why=left.why if left else why,
        fix="inv rollback again",
        host=host,
    )
