"""
Back to a release that was recorded as good: no build, no download, no canary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deploy.errors import DeployError, PreconditionError, RollbackFailed
from deploy.host.protocol import GoodRelease, GoodRollback
from deploy.inventory.schema import ReleasePolicy
from deploy.release import host_commands
from deploy.release.clock import Clock
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome, Report
from deploy.release.lease import LeaseKeeper
from deploy.release.observe import Observed, check_proxy
from deploy.release.parallel import on_each, unexpected
from deploy.release.targets import Way, plan_targets
from deploy.transport.client import HostClient


@dataclass(frozen=True, slots=True)
class HostRollback:
    """
    One host's part: start `to_bundle` in `to_slot`, give it the traffic, stop the other slot.

    Attributes:
        is_warm: The target runs already (a release stopped in the middle): shift, don't start.
        clear_first: Something else is in the slot to take.
        other_ready: The other slot can have the traffic meanwhile.
        from_version: What serves now; None: nothing does.
    """

    host: str
    to_slot: str
    other_slot: str
    target: GoodRelease
    from_version: str | None
    is_warm: bool
    clear_first: bool
    other_ready: bool


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
    hosts: tuple[HostRollback, ...]
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

    `plan_targets` has the rules.  A host that serves it alone is not touched.  A
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
    targets = plan_targets(readable, to, errors, {})
    if targets.is_noop:
        for left in targets.errors.values():
            raise left
    return RollbackPlan(
        targets.target,
        tuple(_host(readable[host.host], host.target) for host in targets.of(Way.GO)),
        targets.reason,
        tuple(LeftOut(left.host, left.why, left.error) for left in targets.of(Way.LEFT_OUT)),
    )


def _host(current: Observed, target: GoodRelease) -> HostRollback:
    kept = current.kept
    warm = next(
        (s for s in current.slots if s.bundle == target.bundle and s.unit == "active"), None
    )
    to_slot = warm.slot if warm is not None and warm.is_ready else current.spare.slot
    other = next(s.slot for s in current.slots if s.slot != to_slot)
    return HostRollback(
        host=current.host,
        to_slot=to_slot,
        other_slot=other,
        target=target,
        from_version=kept.version if kept else None,
        is_warm=warm is not None and warm.is_ready,
        clear_first=not current.slot(to_slot).is_idle,
        other_ready=current.slot(other).is_ready,
    )


def roll_back(
    plan: RollbackPlan,
    *,
    release: str,
    owner: str,
    clients: Mapping[str, HostClient],
    policy: ReleasePolicy,
    limits: host_commands.Limits,
    clock: Clock,
    report: Report,
    recheck: Callable[[], RollbackPlan] | None = None,
) -> ReleaseOutcome:
    """
    Run *plan* on all its hosts at once and return how it ended.

    A host where it fails keeps what served before, and no host stops the others: one that refuses
    its lease, or is no longer as the plan assumed, is named and left as it is.

    Args:
        recheck: Called under the leases, before anything is touched; returns the plan of now.

    Raises:
        RollbackFailed: Interrupted; the next rollback continues it.
        LeaseHeld: Another owner holds more than half of the hosts; nothing was touched.
        PreconditionError: More than half of the hosts have changed; nothing was touched.
        DeployError: No host gave its lease; nothing was touched.
    """
    if plan.is_noop:
        return ReleaseOutcome(release, Ending.NOOP, plan.reason, {})
    run = _Rollback(
        plan, {host.host: clients[host.host] for host in plan.hosts}, limits, clock, report
    )
    keeper = LeaseKeeper(
        run.clients.values(),
        owner=owner,
        release=release,
        ttl_s=policy.lease_ttl,
        clock=clock,
        needs_all=False,
    )
    with keeper:
        for name, error in keeper.refused.items():
            run.say("host.failed", f"{error.what} ({error.why})", name)
        errors = dict(keeper.refused)
        if recheck is not None:
            plan, changed = _as_now(plan, recheck())
            run.follow(plan)
            errors = {**changed, **errors}
        try:
            run.all_hosts(keeper, errors)
        except KeyboardInterrupt:
            raise RollbackFailed(
                f"{release}: interrupted",
                why="some hosts may be back and others not",
                fix="inv rollback continues it",
            ) from None
    assert plan.target is not None
    evidence: dict[str, Any] = {
        "hosts": [h.host for h in plan.hosts],
        "to": plan.target.release,
    }
    if plan.left_out:
        evidence["left_out"] = {left.host: left.why for left in plan.left_out}
    missing = {left.host: left.error for left in plan.left_out if left.error is not None}
    if errors or missing:
        fix = "when the host answers: inv status, then inv rollback --to the same release"
        if not errors:
            fix = missing[min(missing)].fix
        everything = {**missing, **errors}
        first = everything[min(errors or missing)]
        failure = RollbackFailed(
            f"{release}: could not roll back {', '.join(sorted(everything))}",
            why=f"{first.what}: {first.why}",
            fix=fix,
        )
        return ReleaseOutcome(release, Ending.REVERTED, plan.reason, evidence, failure)
    run.say(f"release.{Ending.ROLLED_BACK}", plan.reason)
    return ReleaseOutcome(release, Ending.ROLLED_BACK, plan.reason, evidence)


def _as_now(plan: RollbackPlan, now: RollbackPlan) -> tuple[RollbackPlan, dict[str, DeployError]]:
    """
    Return *plan* with each host's part of *now*, and an error for each host that has none.

    Slots may start, stop and become ready between the two.  What serves may not change.

    Raises:
        PreconditionError: More than half of the hosts have an error.
    """
    parts = {host.host: host for host in now.hosts}
    left_out = {left.host: left for left in now.left_out}
    errors: dict[str, DeployError] = {}
    hosts = []
    for host in plan.hosts:
        part, left = parts.get(host.host), left_out.get(host.host)
        if part is not None and part.from_version == host.from_version:
            hosts.append(part)
        elif part is not None or left is not None:
            hosts.append(host)
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
    return replace(plan, hosts=tuple(hosts)), errors


class _Rollback:
    """
    The steps of a rollback on its hosts.
    """

    def __init__(
        self,
        plan: RollbackPlan,
        clients: Mapping[str, HostClient],
        limits: host_commands.Limits,
        clock: Clock,
        report: Report,
    ) -> None:
        self.clients = clients
        self._limits, self._clock, self._report = limits, clock, report
        self.follow(plan)

    def follow(self, plan: RollbackPlan) -> None:
        self._hosts = {host.host: host for host in plan.hosts}

    def all_hosts(self, keeper: LeaseKeeper, errors: dict[str, DeployError]) -> None:
        """
        Begin, prepare, switch, retire and end; add the errors by host to *errors*.

        Hosts do not wait for each other: a slow one delays the end of the command only.
        """

        def one(name: str) -> None:
            host, client = self._hosts[name], self.clients[name]
            try:
                for step in (self._begin, self._prepare, self._switch, self._retire):
                    keeper.check(name)
                    step(host, client)
            except Exception as error:
                known = error if isinstance(error, DeployError) else unexpected(name, error)
                self.say("host.failed", f"{known.what} ({known.why})", name)
                raise known from error

        errors.update(on_each([name for name in self._hosts if name not in errors], one))
        self._end("failed" if errors else str(Ending.PROMOTED), errors)

    def say(
        self, name: str, text: str, host: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        self._report(ReleaseEvent(self._clock.utc(), name, text, host, data or {}))

    def _end(self, outcome: str, errors: Mapping[str, DeployError]) -> None:
        """
        Write the end on the hosts without an error; a host that is lost now has gone back too.
        """
        unwritten = on_each(
            [name for name in self._hosts if name not in errors],
            lambda name: host_commands.record(self.clients[name], "release.end", outcome=outcome),
        )
        for name, error in unwritten.items():
            self.say("journal.unwritten", f"release.end: {error.why}", name)

    def _begin(self, host: HostRollback, client: HostClient) -> None:
        host_commands.record(
            client,
            "release.begin",
            kind="rollback",
            reason=f"back to {host.target.version} ({host.target.release})",
            to_release=host.target.release,
            bundle=host.target.bundle,
        )

    def _prepare(self, host: HostRollback, client: HostClient) -> None:
        if host.is_warm:
            return
        if host.clear_first:
            stable = host.other_slot if host.from_version is not None else None
            host_commands.clear(
                client, host.to_slot, stable, self._limits, is_ready=host.other_ready
            )
        host_commands.start(client, host.to_slot, host.target.bundle, self._limits)
        self.say("slot.started", f"{host.to_slot}: {host.target.version} is warm", host.host)

    def _switch(self, host: HostRollback, client: HostClient) -> None:
        host_commands.shift(client, {host.to_slot: 100, host.other_slot: 0})
        shares = {host.target.version: 100}
        self.say("traffic.shifted", f"{host.target.version} 100 %", host.host, {"weights": shares})
        target = host.target
        client.call(GoodRollback(target.release, target.bundle, target.version))

    def _retire(self, host: HostRollback, client: HostClient) -> None:
        host_commands.stop(client, host.other_slot, self._limits)
        self.say("slot.retired", f"{host.other_slot}: {host.from_version}", host.host)
