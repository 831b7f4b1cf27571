"""
Back to a release that was recorded as good: no build, no download, no canary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.errors import DeployError, NothingToRollBackTo, RollbackFailed, UsageError
from deploy.host.protocol import GoodRelease, GoodRollback
from deploy.inventory.schema import ReleasePolicy
from deploy.release import host_commands
from deploy.release.clock import Clock
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome, Report
from deploy.release.lease import LeaseKeeper
from deploy.release.observe import Observed, check_proxy
from deploy.release.parallel import on_each
from deploy.transport.client import HostClient


@dataclass(frozen=True, slots=True)
class HostRollback:
    """
    One host's part: start `to_bundle` in `to_slot`, give it the traffic, stop the other slot.

    Attributes:
        is_warm: The target runs already (a release stopped in the middle): shift, don't start.
        clear_first: Something else is in the slot to take.
        from_version: What serves now; None: nothing does.
    """

    host: str
    to_slot: str
    other_slot: str
    target: GoodRelease
    from_version: str | None
    is_warm: bool
    clear_first: bool


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    target: GoodRelease | None
    hosts: tuple[HostRollback, ...]
    reason: str

    @property
    def is_noop(self) -> bool:
        return not self.hosts


def plan_rollback(observed: Mapping[str, Observed], to: str | None = None) -> RollbackPlan:
    """
    Return the way back of every host.  Pure.

    The target is the last good release where a release stopped in the middle on any host, and the
    good release before it where every host is settled.  `to` names another target by release id
    or version.  A host that serves the target alone is not touched.

    An interrupted rollback continues to its own target.  A host without a good release is left
    out if other hosts have one.

    Raises:
        NothingToRollBackTo: A host has no such release on record.
        PreconditionError: A host's HAProxy does not answer, so its traffic weights are unknown.
    """
    for current in observed.values():
        check_proxy(current)
    known = {name: current for name, current in observed.items() if current.good} or observed
    if to is None:
        to = next(filter(None, map(_interrupted, known.values())), None)
    in_the_middle = not all(_is_settled(current) for current in known.values())
    targets = {
        name: _target(current, to, in_the_middle=in_the_middle) for name, current in known.items()
    }
    if to is None:
        _same_everywhere(targets)
    hosts = []
    for name, current in known.items():
        host = _host(current, targets[name])
        if host is not None:
            hosts.append(host)
    target = next(iter(targets.values()), None)
    if not hosts:
        reason = f"every host serves {target.version} already" if target else "no hosts"
        return RollbackPlan(target, (), reason)
    assert target is not None
    return RollbackPlan(target, tuple(hosts), f"back to {target.version} ({target.release})")


def _target(current: Observed, to: str | None, *, in_the_middle: bool) -> GoodRelease:
    if to is not None:
        if not to:
            raise UsageError(
                "--to: an empty name",
                why="every release would match it",
                fix="inv rollback without --to, or --to VERSION",
            )
        for good in reversed(current.good):
            if to in {good.release, good.version} or good.bundle.startswith(to):
                return good
        known = ", ".join(f"{g.version} ({g.release})" for g in reversed(current.good)) or "none"
        raise NothingToRollBackTo(
            f"{current.host}: no release {to} is recorded as good",
            why=f"on record: {known}",
            fix="inv rollback --to one of these, or inv release with that bundle",
            host=current.host,
        )
    if not current.good:
        raise NothingToRollBackTo(
            f"{current.host}: there is no release to roll back to",
            why="no release was ever recorded as good there",
            fix="inv release",
            host=current.host,
        )
    if in_the_middle:
        return current.good[-1]
    earlier = [good for good in current.good if good.bundle != current.good[-1].bundle]
    if not earlier:
        raise NothingToRollBackTo(
            f"{current.host}: there is no earlier release to roll back to",
            why=f"{current.good[-1].version} is the only one recorded as good",
            fix="inv release with another bundle",
            host=current.host,
        )
    return earlier[-1]


def _is_settled(current: Observed) -> bool:
    """
    Return whether the last good release has all the traffic, even if its unit is dead.

    A host where a release began and has not ended is not settled.
    """
    if current.unfinished or current.paused:
        return False
    has = [slot for slot in current.slots if slot.has_traffic]
    return len(has) == 1 and has[0].bundle == current.good[-1].bundle


def _interrupted(current: Observed) -> str | None:
    """
    Return the bundle that an unfinished rollback was returning to; None where there is none.

    The same bundle may have another release id on each host.
    """
    release = current.unfinished.rollback_to if current.unfinished else None
    return next((good.bundle for good in current.good if good.release == release), release)


def _same_everywhere(targets: Mapping[str, GoodRelease]) -> None:
    by_bundle: dict[str, list[str]] = {}
    for name, good in targets.items():
        by_bundle.setdefault(good.bundle, []).append(name)
    if len(by_bundle) > 1:
        said = "; ".join(
            f"{targets[names[0]].version} on {', '.join(names)}" for names in by_bundle.values()
        )
        raise NothingToRollBackTo(
            "the hosts do not agree on what to go back to",
            why=said,
            fix="name it: inv rollback --to VERSION",
        )


def _host(current: Observed, target: GoodRelease) -> HostRollback | None:
    stable = current.stable
    serving = next((s for s in current.slots if s.has_traffic and s.bundle == target.bundle), None)
    warm = next(
        (s for s in current.slots if s.bundle == target.bundle and s.unit == "active"), None
    )
    is_alone = serving is not None and all(s.is_idle for s in current.slots if s is not serving)
    if is_alone and not current.unfinished and not current.paused:
        return None
    to_slot = warm.slot if warm is not None and warm.is_ready else current.spare.slot
    other = next(s.slot for s in current.slots if s.slot != to_slot)
    return HostRollback(
        host=current.host,
        to_slot=to_slot,
        other_slot=other,
        target=target,
        from_version=stable.version if stable else None,
        is_warm=warm is not None and warm.is_ready,
        clear_first=not current.slot(to_slot).is_idle,
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
    recheck: Callable[[], None] = lambda: None,
) -> ReleaseOutcome:
    """
    Run *plan* on all its hosts at once and return how it ended.

    A host where it fails keeps what served before.

    Args:
        recheck: Called under the leases, before anything is touched; raises when the hosts are
            no longer as the plan assumed.

    Raises:
        RollbackFailed: Interrupted; the next rollback continues it.
        LeaseHeld: Another owner is releasing; nothing was touched.
        DeployError: A host could not be reached for its lease; nothing was touched.
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
    )
    with keeper:
        recheck()
        try:
            errors = run.all_hosts(keeper)
        except KeyboardInterrupt:
            raise RollbackFailed(
                f"{release}: interrupted",
                why="some hosts may be back and others not",
                fix="inv rollback continues it",
            ) from None
    assert plan.target is not None
    evidence = {"hosts": [h.host for h in plan.hosts], "to": plan.target.release}
    if errors:
        first = errors[min(errors)]
        failure = RollbackFailed(
            f"{release}: could not roll back {', '.join(sorted(errors))}",
            why=f"{first.what}: {first.why}",
            fix="when the host answers: inv status, then inv rollback --to the same release",
        )
        return ReleaseOutcome(release, Ending.REVERTED, plan.reason, evidence, failure)
    run.say(f"release.{Ending.ROLLED_BACK}", plan.reason)
    return ReleaseOutcome(release, Ending.ROLLED_BACK, plan.reason, evidence)


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
        self._plan, self._limits, self._clock, self._report = plan, limits, clock, report
        self._hosts = {host.host: host for host in plan.hosts}

    def all_hosts(self, keeper: LeaseKeeper) -> dict[str, DeployError]:
        """
        Begin, prepare, switch, retire and end; return the errors by host.

        A host that fails in one step takes no part in the next ones.
        """
        errors: dict[str, DeployError] = {}
        for step in (self._begin, self._prepare, self._switch, self._retire):
            self._step(step, keeper, errors)
        self._end("failed" if errors else str(Ending.PROMOTED), errors)
        return errors

    def say(
        self, name: str, text: str, host: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        self._report(ReleaseEvent(self._clock.utc(), name, text, host, data or {}))

    def _step(
        self,
        step: Callable[[HostRollback, HostClient], None],
        keeper: LeaseKeeper,
        errors: dict[str, DeployError],
    ) -> None:
        def one(name: str) -> None:
            keeper.check(name)
            step(self._hosts[name], self.clients[name])

        failed = on_each([name for name in self._hosts if name not in errors], one)
        for name, error in failed.items():
            self.say("host.failed", f"{error.what} ({error.why})", name)
        errors.update(failed)

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
            reason=self._plan.reason,
            to_release=host.target.release,
        )

    def _prepare(self, host: HostRollback, client: HostClient) -> None:
        if host.is_warm:
            return
        if host.clear_first:
            stable = host.other_slot if host.from_version is not None else None
            host_commands.clear(client, host.to_slot, stable, self._limits)
        host_commands.start(client, host.to_slot, host.target.bundle, self._limits)
        self.say("slot.started", f"{host.to_slot}: {host.target.version} is warm", host.host)

    def _switch(self, host: HostRollback, client: HostClient) -> None:
        host_commands.shift(client, {host.to_slot: 100, host.other_slot: 0})
        shares = {host.target.version: 100}
        self.say("traffic.shifted", f"{host.target.version} 100 %", host.host, {"weights": shares})
        client.call(GoodRollback(to_release=host.target.release))

    def _retire(self, host: HostRollback, client: HostClient) -> None:
        host_commands.stop(client, host.other_slot, self._limits)
        self.say("slot.retired", f"{host.other_slot}: {host.from_version}", host.host)
