"""
What a release or a rollback would do, as a tuple of actions with a digest.  Pure.

The loop (`controller`) runs these actions, and `inv plan` prints them: there is no other list.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain, groupby
from math import ceil
from typing import Any

from deploy.errors import PreconditionError, UsageError
from deploy.foreign_text import visible
from deploy.host.codec import encode
from deploy.inventory.as_file import as_file
from deploy.inventory.schema import ReleasePolicy, Wave
from deploy.release.deadlines import SHIFT_S, STAGE_S, Deadlines
from deploy.release.observe import Observed, ObservedSlot, check_proxy
from deploy.units import format_duration

FLEET = 0  # as the wave of an action: it concerns all hosts


class Kind(StrEnum):
    RELEASE = "release"  # forward, measured, wave by wave
    ROLLBACK = "rollback"  # to a release that was good, on all hosts at once


class Step(StrEnum):
    REVIVE = "revive"
    STAGE = "stage"
    ARM_BACK = "arm_back"  # of a rollback, while its target is not ready yet
    ARM = "arm"
    CLEAR = "clear"
    START = "start"
    GOLDEN = "golden"
    CANARY = "canary"
    JUDGE = "judge"
    PROMOTE = "promote"
    BAKE = "bake"
    CHECK = "check"
    CONFIRM = "confirm"
    RETIRE = "retire"
    TAKE_BACK = "take_back"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Action:
    """
    One thing that happens on one host, or to one wave.

    Attributes:
        host: None: what happens is measured over several hosts.
        wave: From 1; FLEET: all hosts at once.
        does: What it does, in words.
        undo: What takes it back, in words; empty: nothing has to.
        deadline_s: It has failed when it takes longer, in seconds.
    """

    step: Step
    host: str | None
    wave: int
    does: str
    undo: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class HostPlan:
    """
    One host's part.

    Attributes:
        from_slot: Slot of what serves now; None: nothing serves.
        from_ready: It is ready, so that a canary has something to stand beside.  Otherwise the
            new release gets all the traffic once it gave its golden answers.
        to_slot: Slot that the new release takes.
        clear_first: The slot to take is not idle: an earlier release ended in the middle there.
        other_slot: The slot that the new release does not take.
        stop_other: It runs or has traffic: it is stopped when the new release is good.
        to_release: Of a rollback: the id under which this host has recorded the release as good.
        revive: HAProxy and the sockets are brought back first.
    """

    host: str
    from_slot: str | None
    from_bundle: str | None
    from_version: str | None
    from_ready: bool
    to_slot: str
    clear_first: bool
    other_slot: str
    stop_other: bool
    to_release: str | None = None
    revive: bool = False

    @property
    def has_stable(self) -> bool:
        return self.from_slot is not None and self.from_ready


@dataclass(frozen=True)
class ReleasePlan:
    """
    What brings one bundle to a fleet, for the state in which its hosts were observed.

    Attributes:
        bundle, version: Of the release that every host serves afterwards.
        canary_pct: Share of a host's traffic that a canary gets.
        waves: Hosts in the order in which they get it, wave by wave.
        unchanged: Hosts that serve this bundle already.
        policy: `release` of the fleet file: gates, times and budgets.
        start_s, golden_s: Time limits in seconds.
        allow_older: The bundle may be older than the newest good release of a host.
        to_release: Of a rollback: the release to go back to.
    """

    kind: Kind
    fleet: str
    bundle: str
    version: str
    canary_pct: int
    waves: tuple[tuple[str, ...], ...]
    hosts: tuple[HostPlan, ...]
    unchanged: tuple[str, ...]
    policy: dict[str, Any]
    start_s: float
    golden_s: float
    allow_older: bool = False
    to_release: str | None = None

    @cached_property
    def digest(self) -> str:
        """
        Return twelve hex digits that identify the actions, the policy and the hosts as observed.
        """
        document = encode(self)
        for host in document["hosts"]:
            # A slot says this of itself, and must not be able to void the plan to replace it.
            del host["from_ready"]
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def rules(self) -> ReleasePolicy:
        """
        Return the policy as its class.
        """
        return ReleasePolicy.model_validate(self.policy)

    @property
    def deadlines(self) -> Deadlines:
        return Deadlines(self.start_s, self.golden_s, self.rules.drain_timeout)

    @property
    def is_noop(self) -> bool:
        return not self.hosts

    @cached_property
    def by_name(self) -> dict[str, HostPlan]:
        return {host.host: host for host in self.hosts}

    def host(self, name: str) -> HostPlan:
        return self.by_name[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, wave in enumerate(self.waves, 1) for name in wave}

    def wave_of(self, name: str) -> int:
        return self._numbers[name]

    @property
    def is_measured(self) -> bool:
        """
        Return whether there is a release to compare with, so that the new one is measured.
        """
        return self.kind is Kind.RELEASE and any(host.has_stable for host in self.hosts)

    @property
    def actions(self) -> tuple[Action, ...]:
        return tuple(chain.from_iterable(self.stages))

    @cached_property
    def stages(self) -> tuple[tuple[Action, ...], ...]:
        """
        Return the actions in stages.  Within one the hosts do not wait for each other.
        """
        if self.is_noop:
            return ()
        return tuple(self._rollback() if self.kind is Kind.ROLLBACK else self._release())

    def steps(self) -> list[str]:
        """
        Return the actions as text, one line for each host and stage.
        """
        if self.is_noop:
            return [f"nothing to do: every host serves {self.version} already"]
        lines = []
        for stage in self.stages:
            for (wave, host), actions in groupby(stage, lambda action: (action.wave, action.host)):
                where = [f"wave {wave}"] if wave else []
                where += [host] if host else []
                does = ", ".join(action.does for action in actions)
                lines.append(": ".join([*where, does]))
        if self.unchanged:
            lines.append(f"unchanged: {', '.join(self.unchanged)}")
        return lines

    # -- stages

    def _release(self) -> list[tuple[Action, ...]]:
        rules, canary, deadlines = self.rules, self.rules.canary, self.deadlines
        stages = [self._each(Step.STAGE, f"stage {self.version}", STAGE_S)]
        for number, wave in enumerate(self.waves, 1):
            stages.append(tuple(chain.from_iterable(self._prepare(name, number) for name in wave)))
            measured = [name for name in wave if self.host(name).has_stable]
            if measured:
                stages.append(tuple(self._canary(name, number) for name in measured))
                does = (
                    f"judge {', '.join(measured)}: {format_duration(canary.duration)} and "
                    f"{canary.min_requests} requests at least"
                )
                stages.append((self._wait(Step.JUDGE, number, does),))
            stages.append(tuple(self._promote(name, number) for name in wave))
        if self.is_measured:
            does = f"measure all for {format_duration(canary.duration)} more"
            stages.append((self._wait(Step.BAKE, FLEET, does),))
        does = f"check that {self.version} answers through the public port"
        stages.append(self._each(Step.CHECK, does, deadlines.check))
        does = f"confirm {self.version}, record it as good"
        stages.append(self._each(Step.CONFIRM, does, deadlines.confirm))
        retired = (
            "keep the old slot warm" if rules.keep_old == "warm" else "drain and stop the old slot"
        )
        stages.append(self._each(Step.RETIRE, retired, deadlines.retire))
        return stages

    def _rollback(self) -> list[tuple[Action, ...]]:
        one_stage: list[Action] = []
        deadlines = self.deadlines
        for host in self.hosts:
            name, now = host.host, host.from_version or "nothing"
            if host.revive:
                does = "bring HAProxy and the sockets back"
                one_stage.append(self._on(Step.REVIVE, name, FLEET, does, deadlines.revive))
            one_stage += [
                self._on(Step.STAGE, name, FLEET, f"stage {self.version}", STAGE_S),
                *self._arm_back(host),
                *self._clear(host, FLEET),
                self._on(Step.START, name, FLEET, self._starts(host), deadlines.start),
                self._on(Step.ARM, name, FLEET, "arm the host's own way there", deadlines.arm),
                self._on(Step.PROMOTE, name, FLEET, f"all the traffic from {now}", SHIFT_S),
                self._on(Step.CONFIRM, name, FLEET, "confirm that it answers", deadlines.confirm),
                self._on(Step.RETIRE, name, FLEET, f"stop {host.other_slot}", deadlines.stop),
            ]
        return [tuple(one_stage)]

    def _arm_back(self, host: HostPlan) -> tuple[Action, ...]:
        if not host.has_stable or host.from_slot == host.to_slot:
            return ()  # nothing that the host could go back to
        does = f"arm the host's own way back to {host.from_version} until then"
        return (self._on(Step.ARM_BACK, host.host, FLEET, does, self.deadlines.arm),)

    def _each(self, step: Step, does: str, deadline_s: float) -> tuple[Action, ...]:
        return tuple(self._on(step, host.host, FLEET, does, deadline_s) for host in self.hosts)

    def _prepare(self, name: str, wave: int) -> tuple[Action, ...]:
        host, deadlines = self.host(name), self.deadlines
        stop, does = f"stop {host.to_slot}", "arm the host's own way back"
        return (
            self._on(Step.ARM, name, wave, does, deadlines.arm, "disarm"),
            *self._clear(host, wave),
            self._on(Step.START, name, wave, self._starts(host), deadlines.start, stop),
            self._on(Step.GOLDEN, name, wave, "golden answers", deadlines.golden),
        )

    def _clear(self, host: HostPlan, wave: int) -> tuple[Action, ...]:
        if not host.clear_first:
            return ()
        does = f"clear slot {host.to_slot}"
        return (self._on(Step.CLEAR, host.host, wave, does, self.deadlines.clear),)

    def _starts(self, host: HostPlan) -> str:
        return f"start {self.version} in {host.to_slot}"

    def _canary(self, name: str, wave: int) -> Action:
        host = self.host(name)
        does = f"{self.canary_pct} % canary against {host.from_version}"
        return self._on(Step.CANARY, name, wave, does, SHIFT_S, self._all_to(host))

    def _promote(self, name: str, wave: int) -> Action:
        host = self.host(name)
        does = "all the traffic"
        if not host.has_stable:
            now = f"{host.from_version} is not ready" if host.from_slot else "nothing serves"
            does += f" ({now} there now)"
        return self._on(Step.PROMOTE, name, wave, does, SHIFT_S, self._all_to(host))

    def _all_to(self, host: HostPlan) -> str:
        if host.from_slot is None:
            return f"no traffic to {host.to_slot}"
        return f"all the traffic to {host.from_version} in {host.from_slot}"

    def _wait(self, step: Step, wave: int, does: str) -> Action:
        return Action(step, None, wave, does, "", self.rules.canary.give_up_after)

    def _on(
        self,
        step: Step,
        host: str,
        wave: int,
        does: str,
        deadline_s: float,
        undo: str = "",
    ) -> Action:
        return Action(step, host, wave, does, undo, deadline_s)


def check_share(canary_pct: int) -> int:
    """
    Return *canary_pct* if it lies in the range of a canary share.

    Raises:
        UsageError: It lies outside 1 to 50.
    """
    if not 1 <= canary_pct <= 50:
        raise UsageError(
            f"--canary {canary_pct}: not a canary's share",
            why="a canary takes from 1 to 50 percent of the traffic",
            fix="inv release --canary 10",
        )
    return canary_pct


def plan_release(
    *,
    fleet: str,
    bundle: str,
    version: str,
    canary_pct: int,
    policy: ReleasePolicy,
    observed: Mapping[str, Observed],
    start_s: float = 300.0,
    golden_s: float = 60.0,
    allow_older: bool = False,
) -> ReleasePlan:
    """
    Return what bringing *bundle* to all of *observed* takes.  Hosts keep their given order.

    Raises:
        UsageError: The canary's share lies outside 1 to 50.
        PreconditionError: A host's HAProxy does not answer, so its traffic weights are unknown; or
            its own way back was never tried out; or its packages are being changed.
    """
    check_share(canary_pct)
    changed: list[HostPlan] = []
    unchanged: list[str] = []
    for name, current in observed.items():
        check_proxy(current)
        kept, spare = current.kept, current.spare
        if kept is not None and kept.bundle == bundle and spare.is_idle and not current.pending:
            unchanged.append(name)
            continue
        check_way_back(current)
        check_packages(current)
        changed.append(host_plan(current, kept, spare))
    return ReleasePlan(
        kind=Kind.RELEASE,
        fleet=fleet,
        bundle=bundle,
        version=version,
        canary_pct=canary_pct,
        waves=split_waves([host.host for host in changed], policy.waves),
        hosts=tuple(changed),
        unchanged=tuple(unchanged),
        policy=as_file(policy),
        start_s=float(start_s),
        golden_s=float(golden_s),
        allow_older=allow_older,
    )


def host_plan(current: Observed, kept: ObservedSlot | None, to: ObservedSlot) -> HostPlan:
    """
    Return the part of a host where *kept* serves and *to* is the slot to take.
    """
    other = next(slot for slot in current.slots if slot.slot != to.slot)
    return HostPlan(
        host=current.host,
        from_slot=kept.slot if kept else None,
        from_bundle=kept.bundle if kept else None,
        from_version=kept.version if kept else None,
        from_ready=kept is not None and kept.is_ready,
        to_slot=to.slot,
        clear_first=not to.is_idle,
        other_slot=other.slot,
        stop_other=not other.is_idle,
    )


def check_way_back(current: Observed) -> None:
    """
    Refuse a host that may not be able to go back by itself.

    Raises:
        PreconditionError: Its own way back was never tried out there.
    """
    if not current.is_deadman_tested:
        raise PreconditionError(
            f"{current.host}: its own way back is not tested",
            why="if this machine died during a release, nobody would take the host back",
            fix=f"inv provision --limit {current.host} installs it and tries it out",
            host=current.host,
        )


def check_packages(current: Observed) -> None:
    """
    Refuse to go forward on a host while packages change there: they go on without the provisioning
    run that began it, and without its lease.  A way back does not ask.

    Raises:
        PreconditionError: A unit that changes packages runs, or systemd does not say whether.
    """
    if current.package_units is None:
        raise PreconditionError(
            f"{current.host}: systemd does not answer",
            why="whether packages are being changed there is unknown; that may change what a "
            "release starts and measures",
            fix=f"on {current.host}: systemctl is-system-running; then the command again",
            host=current.host,
        )
    if current.package_units:
        units = visible(", ".join(current.package_units))
        raise PreconditionError(
            f"{current.host}: its packages are being changed",
            why=f"{units} runs there, of a provisioning run that is at work or was lost; it may "
            "change what a release starts and measures",
            fix=f"inv provision --limit {current.host} follows it to its end; then the command "
            "again",
            host=current.host,
        )


def split_waves(hosts: Sequence[str], waves: Sequence[Wave]) -> tuple[tuple[str, ...], ...]:
    """
    Return *hosts* cut into waves.  Each of *waves* is how many hosts are released after it.

    What the last one leaves over is a wave of its own: a release reaches every host.
    """
    ends = []
    for wave in waves:
        count = ceil(len(hosts) * int(wave[:-1]) / 100) if isinstance(wave, str) else wave
        ends.append(min(count, len(hosts)))
    ends.append(len(hosts))
    cut: list[tuple[str, ...]] = []
    done = 0
    for end in ends:
        if end > done:
            cut.append(tuple(hosts[done:end]))
            done = end
    return tuple(cut)
