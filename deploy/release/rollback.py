"""
Back to a release that was recorded as good: no build, no download, no canary.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deploy.errors import DeployError, NothingToRollBackTo, PreconditionError
from deploy.host.protocol import GoodRelease
from deploy.inventory.as_file import as_file
from deploy.inventory.schema import ReleasePolicy
from deploy.release.desired import Desired
from deploy.release.observe import Observed, check_proxy
from deploy.release.plan import HostPlan, Kind, ReleasePlan, host_plan
from deploy.release.rollback_target import choose_target, is_settled, most_common, on_record


@dataclass(frozen=True, slots=True)
class LeftOut:
    """
    A host that a rollback does not touch.

    Attributes:
        error: Why; None where nothing serves, so that there is nothing to take back.
    """

    host: str
    why: str
    error: DeployError | None


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """
    Attributes:
        target: The release as most of its hosts have it on record.
        left_out: Hosts that cannot go back to it; the others do not wait for them.
    """

    target: GoodRelease | None
    hosts: tuple[HostPlan, ...]
    reason: str
    left_out: tuple[LeftOut, ...] = ()

    @property
    def is_noop(self) -> bool:
        return not self.hosts


def plan_rollback(
    observed: Mapping[str, Observed],
    to: str | None = None,
    unreadable: Mapping[str, DeployError] | None = None,
) -> RollbackPlan:
    """
    Return the way back of every host.  Pure.

    `choose_target` has the rule for the target.  A host that serves it alone is not touched.  A
    host that cannot be read, or does not have it on record, is left out and named.

    Args:
        to: Release id, version or digest of another target.
        unreadable: Hosts that could not be observed, with their errors.

    Raises:
        NothingToRollBackTo: No host has such a release on record, or the hosts do not agree.
        DeployError: No host can be read; or those that can serve the target already.
    """
    errors = dict(unreadable or {})
    readable = {}
    for name, current in observed.items():
        try:
            check_proxy(current)
        except PreconditionError as error:
            errors[name] = error
        else:
            readable[name] = current
    if errors and not readable:
        raise errors[min(errors)]
    if not readable:
        return RollbackPlan(None, (), "no hosts")
    targets = choose_target(readable, to)
    target = most_common(targets)
    left_out = [
        LeftOut(name, f"{error.what}: {error.why}", error) for name, error in errors.items()
    ]
    left_out += [
        _not_on_record(current, target) for name, current in readable.items() if name not in targets
    ]
    planned = [_host(readable[name], record) for name, record in targets.items()]
    hosts = tuple(host for host in planned if host is not None)
    if hosts:
        reason = f"back to {target.version} ({target.release})"
    else:
        for left in left_out:
            if left.error is not None:
                raise left.error
        reason = f"every host serves {target.version} already"
    if to is None:
        reason += _minority(readable, target)
    if left_out:
        reason += "; not " + "; ".join(f"{left.host} ({left.why})" for left in left_out)
    return RollbackPlan(target, hosts, reason, tuple(left_out))


def _minority(readable: Mapping[str, Observed], target: GoodRelease) -> str:
    """
    Return a note where a few hosts say that their last release did not end.

    They go to what the others serve; the others do not go further back on their word.
    """
    recorded = {name: current for name, current in readable.items() if current.good}
    names = [name for name, current in recorded.items() if not is_settled(current)]
    if not names or 2 * len(names) > len(recorded):
        return ""
    return (
        f"; {', '.join(names)}: the last release has not ended there, so the others keep "
        f"{target.version} (--to VERSION takes them further back)"
    )


def _not_on_record(current: Observed, target: GoodRelease) -> LeftOut:
    why = f"it has no {target.version} on record, only: {on_record(current)}"
    serves = current.stable
    if serves is None:
        return LeftOut(current.host, why, None)
    error = NothingToRollBackTo(
        f"{current.host}: it cannot go back to {target.version}, and serves {serves.version}",
        why=why,
        fix=f"inv release with the bundle of {target.version} and --limit {current.host}",
        host=current.host,
    )
    return LeftOut(current.host, why, error)


def _host(current: Observed, target: GoodRelease) -> HostPlan | None:
    """
    Return the part of a host; None where it serves *target* alone.
    """
    serving = next((s for s in current.slots if s.has_traffic and s.bundle == target.bundle), None)
    is_alone = serving is not None and all(s.is_idle for s in current.slots if s is not serving)
    if is_alone and not (current.unfinished or current.paused or current.pending):
        return None
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


def as_now(plan: ReleasePlan, now: RollbackPlan) -> dict[str, DeployError]:
    """
    Return an error for each host that is no longer as *plan* assumed.

    Slots may start, stop and become ready between the two.  What serves may not change.

    Raises:
        PreconditionError: More than half of the hosts have an error.
    """
    parts = {host.host: host for host in now.hosts}
    left_out = {left.host: left for left in now.left_out}
    errors: dict[str, DeployError] = {}
    for host in plan.hosts:
        part, left = parts.get(host.host), left_out.get(host.host)
        if part is None and left is None:
            continue  # it is there already
        if part is None or part.from_version != host.from_version:
            errors[host.host] = PreconditionError(
                f"{host.host}: it is not any more as the rollback assumed",
                why=left.why if left else f"it does not serve {host.from_version} any more",
                fix="inv rollback again",
                host=host.host,
            )
    if 2 * len(errors) > len(plan.hosts):
        raise PreconditionError(
            "the hosts are not any more as the rollback assumed",
            why=f"the way back is now: {now.reason}",
            fix="inv rollback again",
        )
    return errors
