"""
Releases, rollbacks and what steers them, on real hosts.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from deploy.bundle.send import Sent, stage
from deploy.bundle.store import Bundle
from deploy.clock import SystemClock
from deploy.errors import DeployError, PreconditionError, UsageError
from deploy.foreign_text import listed, visible
from deploy.host.protocol import StateRead
from deploy.inventory.schema import Hook
from deploy.leases.owner import actor
from deploy.leases.signals import signals_interrupt
from deploy.release.api_key_check import check_api_keys
from deploy.release.controller import Controller, Recheck
from deploy.release.desired import Desired, Ending, Goal, Ruling
from deploy.release.desired_text import from_text
from deploy.release.events import ReleaseEvent, ReleaseOutcome, release_id
from deploy.release.gates import Verdict
from deploy.release.hooks import Hooks
from deploy.release.host_actions import Stage
from deploy.release.notify import Notifier, resolve_webhooks
from deploy.release.observe import ANSWER_WITHIN_S, Observed
from deploy.release.one_release import differing, remedy
from deploy.release.plan import FLEET, Kind, ReleasePlan, check_packages, plan_release
from deploy.release.rollback import (
    RollbackPlan,
    as_now,
    implied_leaving,
    implied_target,
    plan_left_out,
    plan_rollback,
    rollback_plan,
    unplanned,
    with_left_out,
)
from deploy.release.store import Known, sorted_out
from deploy.transport.client import HostClient
from deploy.wiring.bundles import checked_bundle
from deploy.wiring.checkout import ROOT, store, wheels
from deploy.wiring.hosts import Hosts
from deploy.wiring.state import lease_keeper, state_store, stored

Report = Callable[[ReleaseEvent], None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


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


def make_plan(
    on: Hosts, bundle: Bundle, canary_pct: int, *, allow_older: bool = False
) -> ReleasePlan:
    """
    Return what releasing *bundle* on *on* takes, as its hosts are now.

    Args:
        allow_older: The bundle may be older than the newest release that a host recorded as good.

    Raises:
        PreconditionError: The bundle is for another row of the matrix than a host stands on; or a
            host has no API keys, while another host of the fleet has some.
    """
    for host in on.fleet.hosts:
        if host.row != bundle.manifest.row:
            raise PreconditionError(
                f"{host.name}: bundle {bundle.version} is not for this host",
                why=f"it was built for {bundle.manifest.row}, the host stands on {host.row}",
                fix=f"inv bundle --hosts {on.fleet.name}, then release that",
                host=host.name,
            )
    observed = on.observed()
    plan = plan_release(
        fleet=on.fleet.name,
        bundle=bundle.digest,
        version=bundle.manifest.version,
        canary_pct=canary_pct,
        policy=on.fleet.release,
        observed=observed,
        start_s=on.limits.start_s,
        golden_s=on.limits.golden_s,
        allow_older=allow_older,
    )
    started = [host.host for host in plan.hosts]
    if any(observed[name].keys is None for name in started):
        check_api_keys(started, on.others() | observed)
    return plan


def run_release(
    on: Hosts, bundle: Bundle, plan: ReleasePlan, report: Report, *, steal: bool = False
) -> ReleaseOutcome:
    """
    Do *plan* and return how it ended.

    Args:
        steal: Take over from an operator who is at work.
    """
    release = release_id(plan.version, SystemClock().utc())
    if plan.is_noop:
        reason = f"every host serves {plan.version} already"
        return ReleaseOutcome(release, Ending.NOOP, reason, {}, version=plan.version)
    desired = Desired(release=release, actor=actor(), goal=Goal.FORWARD, plan=plan)

    def recheck() -> Recheck:
        now = make_plan(on, bundle, plan.canary_pct, allow_older=plan.allow_older)
        check_digest(now, plan.digest)
        return Recheck()

    return _run(on, desired, report, stage=_stage_of(bundle, plan), recheck=recheck, steal=steal)


def make_rollback(on: Hosts, to: str | None) -> RollbackPlan:
    """
    Return the way back of every host that answers, as they are now.

    Raises:
        DeployError: No host could be read, or there is nothing to go back to.
    """
    readable, errors = on.readable(ANSWER_WITHIN_S)
    leaving = None
    if to is None:
        with suppress(DeployError):  # the records of the hosts decide then
            known: dict[str, Observed | DeployError] = {**readable, **errors}
            desired = stored(on, ANSWER_WITHIN_S, known=known, is_way_back=True)
            to, leaving = implied_target(desired), implied_leaving(desired)
    return plan_rollback(readable, to, errors, _versions_in_store(on), leaving=leaving)


def run_rollback(
    on: Hosts, way: RollbackPlan, report: Report, *, steal: bool = False
) -> ReleaseOutcome:
    """
    Do *way* and return how it ended.

    Args:
        steal: Take over from an operator who is at work.
    """
    target = way.target
    # The version is a host's word; the digest stands for the same release on every host.
    name = target.version if target and _NAME.fullmatch(target.version) else "release"
    release = release_id(f"back-to-{name}", SystemClock().utc())
    if way.is_noop or target is None:
        return ReleaseOutcome(release, Ending.NOOP, way.reason, {})
    plan = rollback_plan(
        way,
        fleet=on.fleet.name,
        policy=on.fleet.release,
        start_s=on.limits.start_s,
        golden_s=on.limits.golden_s,
    )
    desired = Desired(
        release=release,
        actor=actor(),
        goal=Goal.FORWARD,
        plan=plan,
        left_out={left.host: left.why for left in way.left_out},
    )

    def recheck() -> Recheck:
        now = make_rollback(on, target.bundle)
        seen, _ = sorted_out(now.seen)
        return Recheck(as_now(plan, now, desired.left_out), seen)

    return _run(
        on,
        desired,
        report,
        recheck=recheck,
        known=way.seen,
        steal=steal,
        within_s=ANSWER_WITHIN_S,
        left_out={left.host: left.error for left in way.left_out if left.error},
        stop_traffic=[left.host for left in way.left_out if left.stop_traffic],
    )


def open_release(on: Hosts, *, is_way_back: bool = False) -> Desired:
    """
    Return the release that has not ended, as the fleet has it on record.

    Args:
        is_way_back: It is going to be taken back, which needs no etcd.

    Raises:
        PreconditionError: There is none, or the hosts do not agree on it.
        TransportError: Too few hosts answer.
    """
    desired = stored(on, ANSWER_WITHIN_S, is_way_back=is_way_back)
    if desired is None or not desired.is_open:
        raise _nothing_open(on, desired)
    return desired


def _nothing_open(on: Hosts, last: Desired | None, since: str = "") -> PreconditionError:
    """
    Return the error for steering a release where none is open.

    Hosts can differ all the same: a rollback needs no majority to act, but one to be on record.

    Args:
        since: What happened after *last*.
    """
    ended = f"; the last one, {visible(last.release)}, was {last.ending}" if last else ""
    ended += f"; {since}" if since else ""
    readable, errors = on.readable(ANSWER_WITHIN_S)
    fix = "inv status shows what serves; inv history shows what ended"
    if unlike := differing(readable):
        ended += f"; hosts differ: {unlike}"
        ended += f"; {listed(errors)} could not be read" if errors else ""
        fix = remedy(readable, last, len(errors)) or fix
    return PreconditionError(
        f"{on.fleet.name}: no release is open",
        why=f"the fleet has none on record that has not ended{ended}",
        fix=fix,
    )


def last_release(on: Hosts, within_s: float | None = ANSWER_WITHIN_S) -> Desired:
    """
    Return the release that `resume` would go on with.

    Args:
        within_s: A host that has not answered by then is not waited for; None: each has the full
            time of its call.

    Raises:
        PreconditionError: No release is open, and the last one left no host out, or was reverted;
            or it was taken back, or a host was since.
        TransportError: Too few hosts answer.
    """
    desired = stored(on, within_s)
    if desired is None or not (desired.is_open or desired.can_resume):
        raise _nothing_open(on, desired)
    _refuse_taken_back(on, desired, within_s)
    return desired


def _refuse_taken_back(on: Hosts, last: Desired, within_s: float | None = ANSWER_WITHIN_S) -> None:
    """
    Refuse to go forward with what a gate or an operator has taken back, on however few hosts.

    A way back needs no majority: the hosts that were away then have *last* on record as it was.  To
    go on with it would bring what the operator has left.

    Raises:
        PreconditionError: *last* goes back, or a host was taken back after it.
    """
    if last.is_open and last.goal is Goal.BACK:
        raise _goes_back(last, visible(last.reason), "inv abort")
    readable, _ = on.readable(within_s)
    for name, current in sorted(readable.items()):
        stamp = current.state
        if stamp is None or (stamp.epoch, stamp.number) <= (last.epoch, last.number):
            continue
        try:
            text = on.clients[name].call(StateRead())
            stamp = text.stamp
            newer = from_text(text.text, stamp.epoch, stamp.number) if stamp else None
        except DeployError:
            continue
        if newer is None or not _takes_back(newer, last):
            continue
        since = f"{name} was taken back since, by {visible(newer.release)}"
        if not last.is_open:
            raise _nothing_open(on, last, since)
        is_rollback = newer.plan.kind is Kind.ROLLBACK
        way = f"inv rollback{_to(newer.plan.bundle)}" if is_rollback else "inv abort"
        reason = f": {visible(newer.reason)}" if newer.reason else ""
        raise _goes_back(last, f"{since}{reason}", way)


def _takes_back(newer: Desired, last: Desired) -> bool:
    """
    Return whether *newer* leaves what *last* goes to; a pause of *last* waits to be resumed.
    """
    if newer.release == last.release:
        return newer.goal is Goal.BACK
    both = {newer.plan.kind, last.plan.kind}
    return newer.is_way_back and not (
        both == {Kind.ROLLBACK} and newer.plan.bundle == last.plan.bundle
    )


def _to(bundle: str) -> str:
    """
    Return the flag that names *bundle*; one host says it, and only a digest is passed on.
    """
    return f" --to {bundle[:12]}" if _DIGEST.fullmatch(bundle) else ""


def _goes_back(last: Desired, why: str, way: str) -> PreconditionError:
    return PreconditionError(
        f"{visible(last.release)}: it was taken back, and does not go forward again",
        why=why,
        fix=f"{way} takes the other hosts back too; then inv release begins anew",
    )


def abort(on: Hosts, report: Report, *, steal: bool = False) -> ReleaseOutcome:
    """
    Take the open release back, whoever runs it.
    """
    desired = _release_only(open_release(on, is_way_back=True))
    return _steer(on, desired, Goal.BACK, "aborted", report, steal=steal)


def pause(on: Hosts, report: Report, *, steal: bool = False) -> ReleaseOutcome:
    """
    Give what served before all the traffic, and keep the new slots warm.
    """
    desired = _release_only(open_release(on, is_way_back=True))
    return _steer(on, desired, Goal.HELD, "paused", report, steal=steal)


def resume(on: Hosts, report: Report, *, steal: bool = False) -> ReleaseOutcome:
    """
    Go on with the open release, or bring hosts that were left out of the last one.

    A rollback also brings the hosts that it was planned without; those that still do not answer
    are named, and it stays open.

    Raises:
        PreconditionError: There is nothing to go on with; or the packages of a host of a release
            are being changed.
    """
    last = last_release(on)
    desired = last.renewed(actor())
    if desired.plan.kind is not Kind.ROLLBACK:
        _check_packages(on, desired.plan)
        return _run(on, desired, report, recheck=_recheck_of(on, last), steal=steal)
    errors: dict[str, DeployError] = {}
    stop_traffic: list[str] = []
    if unplanned(last):
        try:
            readable, unreadable = on.readable(ANSWER_WITHIN_S)
            way = plan_left_out(last, readable, unreadable, _versions_in_store(on))
        except DeployError as error:  # the hosts of the plan do not wait for them
            errors = dict.fromkeys(unplanned(last), error)
            desired = replace(desired, left_out=last.left_out)
        else:
            desired = with_left_out(desired, way)
            errors = {left.host: left.error for left in way.left_out if left.error}
            stop_traffic = [left.host for left in way.left_out if left.stop_traffic]
    return _run(
        on,
        desired,
        report,
        steal=steal,
        within_s=ANSWER_WITHIN_S,
        left_out=errors,
        stop_traffic=stop_traffic,
    )


def promote(on: Hosts, report: Report, *, is_full: bool, steal: bool = False) -> ReleaseOutcome:
    """
    Let the wave that is measured pass, by the operator's word, and go on.

    Args:
        is_full: Let all waves pass, and measure nothing more.

    Raises:
        PreconditionError: No release is open, or it was taken back; or the packages of a host are
            being changed.
    """
    last = _release_only(open_release(on))
    _refuse_taken_back(on, last)
    desired = last.renewed(actor())
    _check_packages(on, desired.plan)
    while (wave := desired.next_wave) is not None:
        hosts = desired.plan.waves[wave - 1] if wave != FLEET else ()
        reason = f"let through by {actor()}"
        desired = desired.ruled(
            Ruling(wave, tuple(hosts), str(Verdict.PASS), "operator", reason, 0, 0, 0, 0.0)
        )
        if not is_full:
            break
    return _run(on, desired, report, recheck=_recheck_of(on, last), steal=steal)


# -- parts


def _recheck_of(on: Hosts, last: Desired) -> Callable[[], Recheck]:
    """
    Return what refuses, under the leases, to go forward with *last* where another operator has
    ended it or begun another release since it was read.
    """

    def recheck() -> Recheck:
        now = last_release(on, None)  # a slow host may be the one that was taken back
        if now.release != last.release:
            raise PreconditionError(
                f"{visible(last.release)}: it is not the last release any more",
                why=f"{visible(now.release)} began since",
                fix="inv status, then the command again",
            )
        return Recheck()

    return recheck


def _check_packages(on: Hosts, plan: ReleasePlan) -> None:
    """
    Refuse to go forward while packages of a host of *plan* are being changed.

    A host that does not answer is left to the controller, which knows how many may be away.
    """
    readable, _ = on.readable()
    for host in plan.hosts:
        if host.host in readable:
            check_packages(readable[host.host])


def _versions_in_store(on: Hosts) -> dict[str, str]:
    """
    Return the versions of the operator's bundles by digest; a damaged store stops no way back.
    """
    try:
        return store().versions(on.fleet.name)
    except DeployError:
        return {}


def _steer(
    on: Hosts, desired: Desired, goal: Goal, does: str, report: Report, *, steal: bool
) -> ReleaseOutcome:
    who = actor()
    turned = replace(desired.turned(goal, f"{does} by {who}"), actor=who, ending=None)
    return _run(on, turned, report, steal=steal, within_s=ANSWER_WITHIN_S)


def _run(
    on: Hosts,
    desired: Desired,
    report: Report,
    *,
    stage: Stage | None = None,
    recheck: Callable[[], Recheck] = Recheck,
    known: Known | None = None,
    steal: bool,
    within_s: float | None = None,
    left_out: Mapping[str, DeployError] | None = None,
    stop_traffic: Collection[str] = (),
) -> ReleaseOutcome:
    clock = SystemClock()
    hooks, notifier = _companions(on, desired, report, clock)

    def tell(event: ReleaseEvent) -> None:
        report(event)
        notifier(event)

    keeper = lease_keeper(on, desired.release)
    controller = Controller(
        desired,
        store=state_store(
            on,
            keeper,
            clock,
            env=os.environ,
            within_s=within_s,
            is_way_back=desired.is_way_back,
        ),
        keeper=keeper,
        clients=on.clients,
        stage=stage or _stage_again(on, desired.plan),
        limits=on.limits,
        clock=clock,
        report=tell,
        recheck=recheck,
        known=known,
        steal=steal,
        left_out=left_out or {},
        hooks=hooks if on.fleet.hooks else None,
        stop_traffic=stop_traffic,
    )
    try:
        with signals_interrupt():
            outcome = controller.run()
        notifier.ended(outcome)
    finally:
        hooks.close()
        notifier.close()
    return outcome


def _companions(
    on: Hosts, desired: Desired, report: Report, clock: SystemClock
) -> tuple[Hooks, Notifier]:
    """
    Return the hooks and the notifications of the fleet; a way back goes on without wrong ones.

    Raises:
        DeployError: A program or a secret is missing, before anything is touched.
    """
    environment, name, release = dict(os.environ), on.fleet.name, desired.release

    def make_hooks(of: Sequence[Hook]) -> Hooks:
        return Hooks(
            of,
            root=ROOT,
            release=release,
            fleet=name,
            env=environment,
            report=report,
            clock=clock,
        )

    try:
        targets = resolve_webhooks(on.fleet, environment)
        hooks = make_hooks(on.fleet.hooks)
    except DeployError as error:
        if not desired.is_way_back:
            raise
        report(ReleaseEvent(clock.utc(), "hook.skipped", f"{error.what}: {error.why}"))
        targets, hooks = (), make_hooks(())
    return hooks, Notifier(targets, release=release, fleet=name, report=report, clock=clock)


def _stage_of(bundle: Bundle, plan: ReleasePlan) -> Stage:
    folder = wheels()

    def stage_one(client: HostClient) -> Sent:
        return stage(bundle, client=client, wheels=folder, allow_older=plan.allow_older)

    return stage_one


def _stage_again(on: Hosts, plan: ReleasePlan) -> Stage:
    """
    Return how the bundle of *plan* comes to a host that lacks it; it is looked up only then.
    """

    def stage_one(client: HostClient) -> Sent:
        try:
            bundle = checked_bundle(on.fleet, plan.bundle)
        except UsageError as error:
            raise UsageError(
                error.what,
                why=f"{client.host} lacks it, and {error.why}",
                fix="inv resume in the checkout that built it; or inv rollback ends the release",
            ) from None
        return _stage_of(bundle, plan)(client)  # type: ignore[return-value]

    return stage_one


def _release_only(desired: Desired) -> Desired:
    if desired.plan.kind is Kind.ROLLBACK:
        raise UsageError(
            f"{desired.release}: a way back cannot be steered",
            why="it has no canary and no waves",
            fix="inv resume or inv rollback finishes it",
        )
    return desired
