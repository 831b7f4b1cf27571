"""
Reads hosts into `Observed`: what serves where, who holds the lease, what was left unfinished.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from deploy.errors import DeployError, PreconditionError
from deploy.host.layout import SLOTS
from deploy.transport.host_tool import HostTool


@dataclass(frozen=True, slots=True)
class SlotSeen:
    """
    One slot of one host.

    Attributes:
        unit: systemd's ActiveState.
        weight_pct: Share of the host's traffic, in percent; None when HAProxy did not answer.
        haproxy: HAProxy's word for the server: UP, DOWN, MAINT, DRAIN; None as above.
        sessions: Requests in flight to the slot, as HAProxy counts them.
    """

    slot: str
    bundle: str | None
    version: str | None
    unit: str
    weight_pct: int | None
    haproxy: str | None
    sessions: int | None
    is_ready: bool

    @property
    def has_traffic(self) -> bool:
        return bool(self.weight_pct)

    @property
    def is_idle(self) -> bool:
        return self.unit in {"inactive", "failed", "unknown"} and not self.has_traffic

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
class Good:
    """
    A release recorded as good on a host.
    """

    release: str
    bundle: str
    version: str


@dataclass(frozen=True, slots=True)
class Observed:
    """
    One reachable host.

    Attributes:
        good: Releases recorded as good and not rolled back, oldest first.
        lease_owner: Holder of an unexpired lease.
        unfinished: Release that began and has not ended, with the step it is at.
    """

    host: str
    slots: tuple[SlotSeen, ...]
    good: tuple[Good, ...]
    lease_owner: str | None
    unfinished: str | None
    paused: str | None
    boot_id: str

    def slot(self, name: str) -> SlotSeen:
        return next(slot for slot in self.slots if slot.slot == name)

    @property
    def stable(self) -> SlotSeen | None:
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
    def spare(self) -> SlotSeen:
        """
        Return the slot that a new release would take: where nothing runs, the one without traffic.
        """
        stable = self.stable
        others = [slot for slot in self.slots if stable is None or slot.slot != stable.slot]
        return min(others, key=lambda slot: slot.weight_pct or 0)


def parse_status(host: str, status: dict[str, Any]) -> Observed:
    """
    Return what the host tool's `status` says.
    """
    slots = []
    for name in SLOTS:
        seen = status["slots"].get(name, {})
        slots.append(
            SlotSeen(
                slot=name,
                bundle=seen.get("bundle"),
                version=seen.get("version"),
                unit=seen.get("unit") or "unknown",
                weight_pct=seen.get("weight"),
                haproxy=seen.get("haproxy"),
                sessions=seen.get("sessions"),
                is_ready=bool(seen.get("ready")),
            )
        )
    lease, unfinished, paused = status["lease"], status["unfinished"], status["paused"]
    return Observed(
        host=host,
        slots=tuple(slots),
        good=tuple(Good(g["release"], g["bundle"], g["version"]) for g in status["good"]),
        lease_owner=lease["owner"] if lease else None,
        unfinished=f"{unfinished['release']} at {unfinished['step']}" if unfinished else None,
        paused=paused["release"] if paused else None,
        boot_id=status["boot_id"],
    )


def check_proxy(seen: Observed) -> None:
    """
    Refuse a host whose shares are unknown.

    Raises:
        PreconditionError: HAProxy does not answer there.
    """
    if any(slot.weight_pct is None for slot in seen.slots):
        raise PreconditionError(
            f"{seen.host}: nobody knows what serves there",
            why="HAProxy does not answer on its runtime socket",
            fix=f"systemctl status haproxy on {seen.host}; inv provision --limit {seen.host}, or "
            "leave it out with --limit",
            host=seen.host,
        )


def observe(tools: Iterable[HostTool], *, timeout_s: float) -> dict[str, Observed | DeployError]:
    """
    Read all hosts at once; an unreachable one has its error in place of what was seen.
    """
    tools = list(tools)

    def read(tool: HostTool) -> Observed | DeployError:
        try:
            return parse_status(tool.host, tool.call("status", timeout_s=timeout_s))
        except DeployError as error:
            return error

    with ThreadPoolExecutor(max(1, len(tools))) as pool:
        return dict(zip((t.host for t in tools), pool.map(read, tools), strict=True))
