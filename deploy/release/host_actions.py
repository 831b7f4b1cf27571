"""
What each step of a plan does on one host.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from deploy.errors import CommandFailed
from deploy.host.protocol import (
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    GoodRecord,
    GoodRollback,
    Retire,
    Status,
)
from deploy.release import host_commands
from deploy.release.deadlines import CONFIRM_S, RETIRE_S
from deploy.release.decide import good_before
from deploy.release.desired import Desired
from deploy.release.host_commands import Limits
from deploy.release.observe import STATUS_S, Observed, dropped_text, observed
from deploy.release.plan import HostPlan, Kind, Step
from deploy.transport.client import HostClient
from deploy.units import format_size


class SentFiles(Protocol):
    """
    What staging one host sent.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def size(self) -> int: ...  # bytes


Stage = Callable[[HostClient], SentFiles]


class Say(Protocol):
    """
    Reports an event of a release.
    """

    def __call__(
        self, name: str, text: str, host: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None: ...


class HostActions:
    """
    Does the steps of one release; each may be repeated.

    Args:
        desired: The release; its plan and its identifier stay as they are.
        stage: Brings the bundle to one host and returns what it sent.
        limits: Time limits of the calls to hosts.
    """

    def __init__(self, desired: Desired, stage: Stage, limits: Limits, say: Say) -> None:
        self._plan, self._release = desired.plan, desired.release
        self._rules = desired.plan.rules
        self._send_bundle, self._limits, self._say = stage, limits, say

    def do(self, step: Step, host: HostPlan, client: HostClient) -> None:
        """
        Do *step* on *host*.

        Raises:
            DeployError: It could not be done, or the host was lost.
        """
        _ACTIONS[step](self, host, client)

    def _revive(self, host: HostPlan, client: HostClient) -> None:
        to = _now(host, client).slot(host.to_slot)
        # A target that runs keeps its slot; what else has to start again is not waited for.
        is_warm = to.bundle == self._plan.bundle and to.unit == "active"
        done = host_commands.revive(client, (host.to_slot,) if is_warm else (), self._limits)
        self._say("host.revived", ", ".join(done) or "nothing had to be brought back", host.host)

    def _stage(self, host: HostPlan, client: HostClient) -> None:
        sent = self._send_bundle(client)
        files = len(sent.names)
        text = (
            f"{files} files sent, {format_size(sent.size)}" if files else "had everything already"
        )
        self._say("host.staged", text, host.host, {"files": files, "bytes": sent.size})

    def _arm(self, host: HostPlan, client: HostClient) -> None:
        # Of a rollback the way back leads to where the rollback leads.
        leaves, keeps = host.to_slot, host.from_slot
        if self._plan.kind is Kind.ROLLBACK:
            leaves, keeps = host.other_slot, host.to_slot
        client.call(DeadmanArm(to_slot=leaves, from_slot=keeps))

    def _arm_back(self, host: HostPlan, client: HostClient) -> None:
        """
        Arm the way back to what serves, while the target of a rollback starts.

        `_arm` turns it.  What is pending of an interrupted release leads to one version too.
        """
        pending = _now(host, client).pending
        leaves, keeps = host.to_slot, host.from_slot
        if pending is not None:
            leaves, keeps = pending.to_slot, pending.from_slot
        client.call(DeadmanArm(to_slot=leaves, from_slot=keeps))

    def _clear(self, host: HostPlan, client: HostClient) -> None:
        stable = host.other_slot if host.from_slot is not None else None
        host_commands.clear(client, host.to_slot, stable, self._limits, is_ready=host.from_ready)
        self._say("slot.cleared", f"{host.to_slot}: left over from before", host.host)

    def _start(self, host: HostPlan, client: HostClient) -> None:
        host_commands.start(
            client,
            host.to_slot,
            self._plan.bundle,
            self._limits,
            allow_older=self._plan.allow_older,
        )
        if self._plan.kind is Kind.ROLLBACK:
            self._say("slot.started", f"{host.to_slot}: {self._plan.version} is warm", host.host)

    def _golden(self, host: HostPlan, client: HostClient) -> None:
        result = host_commands.golden(client, host.to_slot, self._limits)
        text = f"{host.to_slot}: {self._plan.version} is warm, {result.passed} golden answers"
        self._say("slot.started", text, host.host)

    def _canary(self, host: HostPlan, client: HostClient) -> None:
        share = self._plan.canary_pct
        weights = {host.other_slot: 100 - share, host.to_slot: share}
        self._shifted(host, host_commands.shift(client, weights))

    def _promote(self, host: HostPlan, client: HostClient) -> None:
        weights = {host.to_slot: 100, host.other_slot: 0}
        self._shifted(host, host_commands.shift(client, weights))

    def _check(self, host: HostPlan, client: HostClient) -> None:
        plan = self._plan
        # Over a new connection: what is confirmed has to be reachable from outside.
        client.transport.close()
        client.call(DeadmanConfirm(plan.bundle, plan.version, keep=False), timeout_s=CONFIRM_S)

    def _confirm(self, host: HostPlan, client: HostClient) -> None:
        plan = self._plan
        if host.to_release is not None:
            # The host is where its own way back leads.
            client.call(DeadmanDisarm())
            client.call(GoodRollback(host.to_release, plan.bundle, plan.version))
            return
        # It was asked a moment ago, in `_check`: from the first host that keeps the release to
        # the last one, as little time as possible passes.
        client.call(DeadmanConfirm(plan.bundle, plan.version, ask=False), timeout_s=CONFIRM_S)
        client.call(GoodRecord(plan.bundle, plan.version, host.to_slot))
        self._say("host.confirmed", f"{plan.version} answers, and is recorded as good", host.host)

    def _retire(self, host: HostPlan, client: HostClient) -> None:
        is_kept_warm = self._plan.kind is Kind.RELEASE and self._rules.keep_old == "warm"
        if host.stop_other and not is_kept_warm:
            host_commands.stop(client, host.other_slot, self._limits)
            self._say("slot.retired", f"{host.other_slot}: {host.from_version}", host.host)
        if self._plan.kind is Kind.RELEASE:
            retired = client.call(Retire(keep=self._limits.keep), timeout_s=RETIRE_S)
            if dropped := dropped_text(retired):
                self._say("bundle.dropped", dropped, host.host)

    def _take_back(self, host: HostPlan, client: HostClient) -> None:
        """
        Do only what is missing, so that nothing stands in the way that is not needed.
        """
        current = _now(host, client)
        if not _serves_as_before(current, host):
            self._start_before(current, host, client)
            self._move_back(host, client)
        slot = current.slot(host.to_slot)
        if slot.bundle == self._plan.bundle or not slot.is_stopped:
            host_commands.stop(client, host.to_slot, self._limits)
        self._forget_good(current, client)
        if current.pending is not None:
            client.call(DeadmanDisarm())
        self._say("host.reverted", f"{host.from_version or 'nothing'} serves", host.host)

    def _start_before(self, current: Observed, host: HostPlan, client: HostClient) -> None:
        """
        Start what served before where it was stopped since: the release had retired it.

        Raises:
            CommandFailed: It does not start, and was ready before.
        """
        if host.from_slot is None or host.from_bundle is None:
            return
        if not current.slot(host.from_slot).is_stopped:
            return
        try:
            # The release was recorded as good, and may be newer.
            host_commands.start(
                client, host.from_slot, host.from_bundle, self._limits, allow_older=True
            )
        except CommandFailed:
            if host.from_ready:
                raise

    def _forget_good(self, current: Observed, client: HostClient) -> None:
        """
        Take a release that is taken back out of the record: no rollback may lead to it.
        """
        earlier = good_before(self._release, current)
        if earlier is not None:
            client.call(GoodRollback(to_release=earlier.release))

    def _hold(self, host: HostPlan, client: HostClient) -> None:
        current = _now(host, client)
        if not _serves_as_before(current, host):
            self._start_before(current, host, client)
            self._shifted(host, self._move_back(host, client))
        self._forget_good(current, client)
        if current.pending is not None:
            client.call(DeadmanDisarm())

    def _move_back(self, host: HostPlan, client: HostClient) -> dict[str, int]:
        return host_commands.move_traffic(
            client, host.to_slot, host.from_slot, is_ready=host.from_ready
        )

    def _shifted(self, host: HostPlan, weights: Mapping[str, int]) -> None:
        versions = {host.other_slot: host.from_version, host.to_slot: self._plan.version}
        shares = {str(versions[slot]): pct for slot, pct in weights.items() if versions.get(slot)}
        text = ", ".join(f"{version} {pct} %" for version, pct in shares.items())
        self._say("traffic.shifted", text, host.host, {"weights": shares})


_ACTIONS: Mapping[Step, Callable[[HostActions, HostPlan, HostClient], None]] = {
    Step.REVIVE: HostActions._revive,
    Step.STAGE: HostActions._stage,
    Step.ARM_BACK: HostActions._arm_back,
    Step.ARM: HostActions._arm,
    Step.CLEAR: HostActions._clear,
    Step.START: HostActions._start,
    Step.GOLDEN: HostActions._golden,
    Step.CANARY: HostActions._canary,
    Step.PROMOTE: HostActions._promote,
    Step.CHECK: HostActions._check,
    Step.CONFIRM: HostActions._confirm,
    Step.RETIRE: HostActions._retire,
    Step.TAKE_BACK: HostActions._take_back,
    Step.HOLD: HostActions._hold,
}


def _now(host: HostPlan, client: HostClient) -> Observed:
    return observed(host.host, client.call(Status(), timeout_s=STATUS_S))


def _serves_as_before(current: Observed, host: HostPlan) -> bool:
    if current.slot(host.to_slot).weight_pct != 0:
        return False
    return host.from_slot is None or current.slot(host.from_slot).weight_pct == 100
