"""
What a release would do, host by host, as a value with a digest.  Pure.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil

from deploy.errors import UsageError
from deploy.inventory.schema import ReleasePolicy, Wave
from deploy.release.observe import Observed, check_proxy


@dataclass(frozen=True, slots=True)
class HostPlan:
    """
    One host's part.

    Attributes:
        from_slot: Slot of the release that serves now; None: nothing serves.
        from_ready: It is ready, so that a canary has something to stand beside.  Otherwise the
            new release gets all the traffic once it gave its golden answers.
        to_slot: Slot that the new release takes.
        clear_first: The slot to take is not idle: an earlier release ended in the middle there.
        other_slot: The slot that the new release does not take.
        stop_other: It runs or has traffic: it is stopped when the new release is good.
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

    @property
    def has_stable(self) -> bool:
        return self.from_slot is not None and self.from_ready


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """
    A release of one bundle on one fleet, for the state in which its hosts were observed.

    Attributes:
        waves: Hosts in the order they are released, wave by wave.
        unchanged: Hosts that serve this bundle already.
    """

    fleet: str
    bundle: str
    version: str
    canary_pct: int
    waves: tuple[tuple[str, ...], ...]
    hosts: tuple[HostPlan, ...]
    unchanged: tuple[str, ...]

    @property
    def digest(self) -> str:
        """
        Return twelve hex digits that identify this plan and the observed state of its hosts.
        """
        document = asdict(self)
        for host in document["hosts"]:
            # A slot says this of itself, and must not be able to void the plan to replace it.
            del host["from_ready"]
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def is_noop(self) -> bool:
        return not self.hosts

    def host(self, name: str) -> HostPlan:
        return next(host for host in self.hosts if host.host == name)

    def steps(self) -> list[str]:
        """
        Return the plan as text, one line a step.
        """
        if self.is_noop:
            return [f"nothing to do: every host serves {self.version} already"]
        lines = [f"stage {self.version} on {', '.join(h.host for h in self.hosts)}"]
        for number, wave in enumerate(self.waves, 1):
            for name in wave:
                host = self.host(name)
                if host.clear_first:
                    lines.append(f"wave {number}: {name}: clear slot {host.to_slot} first")
                if host.has_stable:
                    lines.append(
                        f"wave {number}: {name}: start {self.version} in {host.to_slot}, golden "
                        f"answers, {self.canary_pct} % canary against {host.from_version}, then all"
                    )
                else:
                    now = (
                        f"{host.from_version} is not ready there"
                        if host.from_slot
                        else "nothing serves there now"
                    )
                    lines.append(
                        f"wave {number}: {name}: start {self.version} in {host.to_slot}, golden "
                        f"answers, then all the traffic ({now})"
                    )
        lines.append("record as good, drain and stop the old slots")
        if self.unchanged:
            lines.append(f"unchanged: {', '.join(self.unchanged)}")
        return lines


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
) -> ReleasePlan:
    """
    Return what bringing *bundle* to all of *observed* takes.  Hosts keep their given order.

    Raises:
        UsageError: The canary's share lies outside 1 to 50.
        PreconditionError: A host's HAProxy does not answer, so its traffic weights are unknown.
    """
    check_share(canary_pct)
    changed: list[HostPlan] = []
    unchanged: list[str] = []
    for name, current in observed.items():
        check_proxy(current)
        kept, spare = current.kept, current.spare
        other = next(slot for slot in current.slots if slot.slot != spare.slot)
        if kept is not None and kept.bundle == bundle and spare.is_idle:
            unchanged.append(name)
            continue
        changed.append(
            HostPlan(
                host=name,
                from_slot=kept.slot if kept else None,
                from_bundle=kept.bundle if kept else None,
                from_version=kept.version if kept else None,
                from_ready=kept is not None and kept.is_ready,
                to_slot=spare.slot,
                clear_first=not spare.is_idle,
                other_slot=other.slot,
                stop_other=not other.is_idle,
            )
        )
    return ReleasePlan(
        fleet=fleet,
        bundle=bundle,
        version=version,
        canary_pct=canary_pct,
        waves=split_waves([host.host for host in changed], policy.waves),
        hosts=tuple(changed),
        unchanged=tuple(unchanged),
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
