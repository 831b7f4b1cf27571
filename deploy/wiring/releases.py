"""
Releases and rollbacks on real hosts.
"""

import re
from collections.abc import Callable

from deploy.bundle.send import Sent, stage
from deploy.bundle.store import Bundle
from deploy.errors import PreconditionError
from deploy.release.events import ReleaseEvent, ReleaseOutcome, release_id
from deploy.release.executor import ReleaseExecutor
from deploy.release.plan import ReleasePlan, plan_release
from deploy.release.rollback import RollbackPlan, plan_rollback, roll_back
from deploy.transport.client import HostClient
from deploy.wiring.checkout import wheels
from deploy.wiring.clock import SystemClock
from deploy.wiring.hosts import Hosts, owner

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def check_digest(plan: ReleasePlan, digest: str | None) -> None:
    """
    Refuse a plan that is not the approved one.

    Raises:
        PreconditionError: The world, the bundle or the policy changed since the approval.
    """
    if digest is not None and digest != plan.digest:
        raise PreconditionError(
            f"plan {digest} does not hold any more",
            why=f"as the hosts are now, the plan is {plan.digest}",
            fix="look at what changed with inv plan, and approve that",
        )


def make_plan(on: Hosts, bundle: Bundle, canary_pct: int) -> ReleasePlan:
    """
    Return what releasing *bundle* on *on* takes, as its hosts are now.

    Raises:
        PreconditionError: The bundle is for another row of the matrix than a host stands on.
    """
    for host in on.fleet.hosts:
        if host.row != bundle.manifest.row:
            raise PreconditionError(
                f"{host.name}: bundle {bundle.version} is not for this host",
                why=f"it was built for {bundle.manifest.row}, the host stands on {host.row}",
                fix=f"inv bundle --hosts {on.fleet.name}, then release that",
                host=host.name,
            )
    return plan_release(
        fleet=on.fleet.name,
        bundle=bundle.digest,
        version=bundle.manifest.version,
        canary_pct=canary_pct,
        policy=on.fleet.release,
        observed=on.observed(),
    )


def run_release(
    on: Hosts,
    bundle: Bundle,
    plan: ReleasePlan,
    report: Callable[[ReleaseEvent], None],
    *,
    allow_older: bool = False,
) -> ReleaseOutcome:
    """
    Do *plan* and return how it ended.

    Args:
        allow_older: The bundle may be older than the newest release that a host recorded as good.
    """
    clock, folder = SystemClock(), wheels()

    def stage_one(client: HostClient) -> Sent:
        return stage(bundle, client=client, wheels=folder, allow_older=allow_older)

    executor = ReleaseExecutor(
        plan,
        release=release_id(plan.version, clock.utc()),
        owner=owner(),
        clients=on.clients,
        stage=stage_one,
        policy=on.fleet.release,
        limits=on.limits,
        clock=clock,
        report=report,
        recheck=lambda: check_digest(make_plan(on, bundle, plan.canary_pct), plan.digest),
        allow_older=allow_older,
    )
    return executor.run()


def make_rollback(on: Hosts, to: str | None) -> RollbackPlan:
    """
    Return the way back of every host that answers, as they are now.

    Raises:
        DeployError: No host could be read, or there is nothing to go back to.
    """
    readable, errors = on.readable()
    return plan_rollback(readable, to, errors)


def run_rollback(
    on: Hosts, plan: RollbackPlan, report: Callable[[ReleaseEvent], None]
) -> ReleaseOutcome:
    """
    Do *plan* and return how it ended.
    """
    clock = SystemClock()
    target = plan.target
    # The version is a host's word; the digest stands for the same release on every host.
    name = target.version if target and _NAME.fullmatch(target.version) else "release"
    return roll_back(
        plan,
        release=release_id(f"back-to-{name}", clock.utc()),
        owner=owner(),
        clients=on.clients,
        policy=on.fleet.release,
        limits=on.limits,
        clock=clock,
        report=report,
        recheck=lambda: make_rollback(on, target.bundle if target else None),
    )
