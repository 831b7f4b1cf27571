"""
What releases to simulated fleets of several sizes cost the controller, and how that grows.  Pure.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploy.cli.grid import Grid

PHASES = ("plan", "lease", "stage", "waves", "status", "rollback")


@dataclass(frozen=True, slots=True)
class Phase:
    """
    Attributes:
        wall_s: Seconds that passed.
        cpu_s: Processor seconds of the controller's process, all threads.
        commands: SSH commands, of all hosts together.
    """

    wall_s: float
    cpu_s: float
    commands: int


@dataclass(frozen=True)
class FleetFigures:
    """
    A release and a rollback of one fleet.

    Attributes:
        measured_s: Of the waves, the seconds in which canaries and promoted hosts were measured.
        idle_mib: Resident memory before the fleet file was read: Python and imports.
        peak_mib: The most that was resident.
        connections: Most commands at once.
        state_bytes: Of the last desired state of the release, as each host stores it.
        printed_bytes: What an operator saw of plan, release, status and rollback.
        verbs: Calls of each verb, the mean of all hosts.
    """

    hosts: int
    latency_ms: float
    phases: dict[str, Phase]
    measured_s: float
    idle_mib: float
    peak_mib: float
    connections: int
    sent_bytes: int
    received_bytes: int
    state_bytes: int
    printed_bytes: int
    verbs: dict[str, float]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "FleetFigures":
        """
        Return the figures that `as_json` made a document of.
        """
        phases = {name: Phase(**phase) for name, phase in document["phases"].items()}
        return cls(**{**document, "phases": phases})

    @property
    def wall_s(self) -> float:
        return sum(phase.wall_s for phase in self.phases.values())

    @property
    def cpu_s(self) -> float:
        return sum(phase.cpu_s for phase in self.phases.values())

    @property
    def commands_per_host(self) -> float:
        return sum(phase.commands for phase in self.phases.values()) / self.hosts


@dataclass(frozen=True)
class FleetTimes:
    fleets: tuple[FleetFigures, ...]

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv bench.fleet --json`.
        """
        return {"fleets": [asdict(fleet) for fleet in self.fleets], "growth": self.growth()}

    def growth(self) -> dict[str, float]:
        """
        Return the exponent of growth from the second largest fleet to the largest, by figure.

        1: in proportion to the hosts; 2: with their square.
        """
        if len(self.fleets) < 2:
            return {}
        small, large = sorted(self.fleets, key=lambda fleet: fleet.hosts)[-2:]
        pairs = {
            **{
                f"{name}_cpu_s": (small.phases[name].cpu_s, large.phases[name].cpu_s)
                for name in PHASES
            },
            "cpu_s": (small.cpu_s, large.cpu_s),
            "sent_bytes": (small.sent_bytes, large.sent_bytes),
            "state_bytes": (small.state_bytes, large.state_bytes),
            "memory": (small.peak_mib - small.idle_mib, large.peak_mib - large.idle_mib),
        }
        scale = large.hosts / small.hosts
        return {name: exponent(*pair, scale) for name, pair in pairs.items()}

    def table(self) -> Grid:
        grid = Grid(("hosts", *PHASES, "CPU", "memory", "commands a host", "state", "sent"))
        for fleet in self.fleets:
            cells = [_phase(fleet.phases[name]) for name in PHASES]
            grid.add_row(
                str(fleet.hosts),
                *cells,
                f"{fleet.cpu_s:.2f} s",
                f"{fleet.peak_mib:.0f} MiB",
                f"{fleet.commands_per_host:.1f}",
                f"{fleet.state_bytes / 1024:.1f} KiB",
                f"{fleet.sent_bytes / 2**20:.1f} MiB",
            )
        grid.notes.append(
            "seconds that passed, and in brackets processor seconds of the controller; memory: the "
            "most that was resident"
        )
        grid.notes += [
            f"{fleet.hosts} hosts: {fleet.measured_s:.1f} s of the waves were measuring; "
            f"{fleet.connections} commands at once at most; {fleet.idle_mib:.0f} MiB before it "
            "read the fleet file"
            for fleet in self.fleets
        ]
        if growth := self.growth():
            shown = ", ".join(f"{name} {value:.2f}" for name, value in growth.items())
            grid.notes.append(f"growth with the hosts, as an exponent: {shown}")
        return grid


def exponent(small: float, large: float, scale: float) -> float:
    """
    Return x where *large* is *small* times *scale* to the x; 0 where one of them is nothing.
    """
    if small <= 0 or large <= 0 or scale == 1:
        return 0.0
    return round(math.log(large / small) / math.log(scale), 2)


def _phase(phase: Phase) -> str:
    return f"{phase.wall_s:.2f} ({phase.cpu_s:.2f})"
