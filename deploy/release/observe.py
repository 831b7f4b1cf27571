"""
Reads hosts into `Observed`: what serves where, who holds the lease, what was left unfinished.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.errors import DeployError, PreconditionError
from deploy.host.layout import SLOTS
from deploy.host.protocol import (
    GoodRelease,
    HostStatus,
    KeysStamp,
    LeaseStatus,
    Pending,
    RebootReason,
    Retired,
    SlotStatus,
    StateStamp,
    Status,
    Unfinished,
    WentBack,
)
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each

if TYPE_CHECKING:
    from deploy.certificates.shown import ShownCertificate

STATUS_S = 15.0  # time limit of a call
ANSWER_WITHIN_S = 2.0  # a way back goes on without hosts that have not answered by then


@dataclass(frozen=True, slots=True)
class ObservedSlot:
    """
    One slot of one host.

    Attributes:
        unit: systemd's ActiveState.
        weight_pct: Share of the host's traffic, in percent; None when HAProxy did not answer.
        haproxy: HAProxy's word for the server: UP, DOWN, MAINT, DRAIN; None as above.
        sessions: Requests in flight to the slot, as HAProxy counts them.
        is_masked: systemd was told never to start its unit.
    """

    slot: str
    bundle: str | None
    version: str | None
    unit: str
    weight_pct: int | None
    haproxy: str | None
    sessions: int | None
    is_ready: bool
    is_masked: bool = False

    @property
    def has_traffic(self) -> bool:
        return bool(self.weight_pct)

    @property
    def is_starting(self) -> bool:
        return self.unit == "activating" and self.bundle is not None

    @property
    def is_stopped(self) -> bool:
        return self.unit in {"inactive", "failed"}

    @property
    def is_idle(self) -> bool:
        return (self.is_stopped or self.unit == "unknown") and not self.has_traffic

    @property
    def state(self) -> str:
        """
        Return one word for the slot: empty, stopped, failed, starting, warm, draining, serving.
        """
        if self.bundle is None and self.unit in {"inactive", "unknown"}:
            return "empty"
        if self.unit == "active":
            if self.has_traffic:
                return "serving"
            return "draining" if self.sessions else "warm"
        return {"activating": "starting", "inactive": "stopped"}.get(self.unit, self.unit)

    @property
    def health(self) -> str:
        if self.unit != "active":
            return "down"
        return "ok" if self.is_ready else "unready"


@dataclass(frozen=True, slots=True)
class Observed:
    """
    One reachable host.

    Attributes:
        good: Releases recorded as good, not rolled back, that the host can start now; oldest first.
        lease_owner: Holder of an unexpired lease.
        unfinished: Release that began and has not ended, with the step it is at.
        is_reserve_whole: The space that is kept for a way back on a full disk is all there.
        epoch: Newest epoch of the desired state that the host has seen.
        state: Which desired state it holds.
        staged: Bundles that it can start.
        pending: What it takes back by itself unless it is confirmed.
        went_back: What it took back by itself.
        has_tls: Its public port speaks TLS.
        certificate: That the port shows; None: none that can be read.
        is_certificate_kept: A restart of HAProxy would show the same one.
        keys: Which list of API keys it holds.
        keys_damage: Why its file of API keys is no list.
        is_open: Balancers in front of it may send requests; None: it has no door.
        reboot_reasons: Why it has to be rebooted.
        package_units: Units that change its packages now; None: systemd does not answer there.
        is_pending_damaged: Nothing says what it is to take back by itself, if anything.
        is_pending_aside: A damaged file of what it is to take back was put aside, and is there.
    """

    host: str
    slots: tuple[ObservedSlot, ...]
    good: tuple[GoodRelease, ...]
    lease_owner: str | None
    unfinished: Unfinished | None
    paused: str | None
    boot_id: str
    is_reserve_whole: bool = True
    lease: LeaseStatus | None = None
    epoch: int = 0
    state: StateStamp | None = None
    staged: tuple[str, ...] = ()
    pending: Pending | None = None
    went_back: WentBack | None = None
    is_deadman_tested: bool = True
    has_tls: bool = False
    certificate: "ShownCertificate | None" = None
    is_certificate_kept: bool = True
    keys: KeysStamp | None = None
    keys_damage: str | None = None
    is_open: bool | None = None
    reboot_reasons: tuple[RebootReason, ...] = ()
    package_units: tuple[str, ...] | None = ()
    is_pending_damaged: bool = False
    is_pending_aside: bool = False

    @property
    def unfinished_text(self) -> str | None:
        unfinished = self.unfinished
        return f"{unfinished.release} at {unfinished.step}" if unfinished else None

    def slot(self, name: str) -> ObservedSlot:
        return next(slot for slot in self.slots if slot.slot == name)

    @property
    def has_weights(self) -> bool:
        """
        Return whether HAProxy answered: otherwise the shares of the traffic are not known.
        """
        return all(slot.weight_pct is not None for slot in self.slots)

    @property
    def dead_slots(self) -> tuple[ObservedSlot, ...]:
        """
        Return the slots that have traffic and whose unit does not run: systemd has given up on
        them, or was told to.
        """
        return tuple(slot for slot in self.slots if slot.has_traffic and slot.is_stopped)

    @property
    def stable(self) -> ObservedSlot | None:
        """
        Return the slot of the release that serves: the last one recorded as good, where it runs.

        Without one, the slot with most of the traffic; None where nothing serves.
        """
        if self.good:
            for slot in sorted(self.slots, key=lambda s: -(s.weight_pct or 0)):
                if slot.bundle == self.good[-1].bundle and slot.unit == "active":
                    return slot
        serving = [slot for slot in self.slots if slot.has_traffic and slot.unit == "active"]
        return max(serving, key=lambda slot: slot.weight_pct or 0, default=None)

    @property
    def kept(self) -> ObservedSlot | None:
        """
        Return the slot that serves while a new release starts in the other one.

        That is the stable one, also where it is not ready or still starting: no slot keeps a
        release from replacing it.  Where only the other one is ready and has traffic, it is that.
        None where nothing serves.
        """
        stable = self.stable or next((s for s in self.slots if s.is_starting), None)
        if stable is None or stable.is_ready:
            return stable
        ready = [s for s in self.slots if s.unit == "active" and s.has_traffic and s.is_ready]
        return ready[0] if ready else stable

    @property
    def spare(self) -> ObservedSlot:
        """
        Return the slot that a new release would take: where nothing runs, the one without traffic.
        """
        kept = self.kept
        others = [slot for slot in self.slots if kept is None or slot.slot != kept.slot]
        return min(others, key=lambda slot: slot.weight_pct or 0)


def observed(host: str, status: HostStatus) -> Observed:
    """
    Return *status* of *host* as the plans read it.
    """
    return Observed(
        host=host,
        slots=tuple(_slot(name, status.slots[name]) for name in SLOTS),
        good=status.good,
        lease_owner=status.lease.owner if status.lease else None,
        unfinished=status.unfinished,
        paused=status.paused,
        boot_id=status.boot_id,
        is_reserve_whole=status.is_reserve_whole,
        lease=status.lease,
        epoch=status.epoch,
        state=status.state,
        staged=status.staged,
        pending=status.pending,
        went_back=status.went_back,
        is_deadman_tested=status.is_deadman_tested,
        has_tls=status.certificate is not None,
        certificate=_certificate(status.certificate),
        is_certificate_kept=status.is_certificate_kept,
        keys=status.keys,
        keys_damage=status.keys_damage,
        is_open=status.is_open,
        reboot_reasons=status.reboot_reasons,
        package_units=status.package_units,
        is_pending_damaged=status.is_pending_damaged,
        is_pending_aside=status.is_pending_aside,
    )


def _certificate(text: str | None) -> "ShownCertificate | None":
    if not text:
        return None
    from deploy.certificates.shown import shown_certificate  # slow to import, for TLS alone

    return shown_certificate(text)


def _slot(name: str, status: SlotStatus) -> ObservedSlot:
    return ObservedSlot(
        slot=name,
        bundle=status.bundle,
        version=status.version,
        unit=status.unit,
        weight_pct=status.weight,
        haproxy=status.haproxy,
        sessions=status.sessions,
        is_ready=status.ready,
        is_masked=status.is_masked,
    )


def needs_reviving(current: Observed) -> str | None:
    """
    Return why `Revive` has to be called on a host before its slots can be changed; None: it has
    not.
    """
    if not current.has_weights:
        return "HAProxy does not answer"
    unreachable = [
        slot.slot for slot in current.slots if slot.unit == "active" and slot.haproxy == "DOWN"
    ]
    if unreachable and not any(slot.is_ready for slot in current.slots):
        return f"no slot answers, and {', '.join(unreachable)} runs"
    return None


def dropped_text(retired: Retired) -> str | None:
    """
    Return which releases a host has deleted, as a line; None if none.
    """
    names = [
        f"{release.version or 'a damaged release'} ({release.release or release.bundle[:12]})"
        for release in retired.dropped
    ]
    return f"deleted, no rollback returns to it there: {', '.join(names)}" if names else None


def check_proxy(current: Observed) -> None:
    """
    Refuse a host whose shares are unknown.

    Raises:
        PreconditionError: HAProxy does not answer there.
    """
    if any(slot.weight_pct is None for slot in current.slots):
        raise PreconditionError(
            f"{current.host}: its traffic weights are unknown",
            why="HAProxy does not answer on its runtime socket",
            fix=f"systemctl status haproxy on {current.host}; inv provision --limit "
            f"{current.host}, or leave it out with --limit",
            host=current.host,
        )


def look(
    clients: Mapping[str, HostClient], *, timeout_s: float = STATUS_S, within_s: float | None = None
) -> tuple[dict[str, Observed], dict[str, DeployError]]:
    """
    Return what the hosts that answer look like, and the errors of the others.

    Args:
        timeout_s: Of the call to one host.
        within_s: A host that has not answered by then has an error, and is not waited for.  The
            next look waits less for it, by how fast the others answer.
    """
    seen: dict[str, Observed] = {}

    def one(host: str) -> None:
        try:
            seen[host] = observed(host, clients[host].call(Status(), timeout_s=timeout_s))
        finally:
            ended.add(host)

    ended: set[str] = set()
    late = [name for name, client in clients.items() if client.was_late]
    errors = on_each(clients, one, within_s=within_s, late=late)
    for name, client in clients.items():
        client.was_late = name not in ended
    return {host: seen[host] for host in clients if host in seen and host not in errors}, errors


def observe(
    clients: Iterable[HostClient], *, timeout_s: float, within_s: float | None = None
) -> dict[str, Observed | DeployError]:
    """
    Read all hosts at once, as `look` does; a host that cannot be read has its error instead.
    """
    by_name = {client.host: client for client in clients}
    seen, errors = look(by_name, timeout_s=timeout_s, within_s=within_s)
    return {host: errors[host] if host in errors else seen[host] for host in by_name}
