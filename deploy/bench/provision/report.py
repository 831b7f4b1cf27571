"""
How long provisioning took with each tool, and in which ratio to ours.  Pure.
"""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from deploy.cli.grid import Grid

OURS = "slipway"


@dataclass(frozen=True, slots=True)
class ProvisionTime:
    """
    One run of one tool, as a whole process.

    Attributes:
        link: LAN, or the delay of each way.
        is_first: On bare hosts; otherwise nothing was left to change.
        cpu_s: Processor seconds on this machine, child processes included; hosts not.
        commands: SSH commands that the sshd of one host started, the mean of all hosts.
    """

    tool: str
    link: str
    is_first: bool
    wall_s: float
    cpu_s: float
    commands: float


@dataclass(frozen=True)
class ProvisionTimes:
    """
    Attributes:
        left_out: Resources that the peers have no module for.
        unlike: {tool: resources that slipway would change after it}, beside those left out.
    """

    runs: tuple[ProvisionTime, ...]
    hosts: int
    resources: int
    left_out: tuple[str, ...]
    unlike: dict[str, tuple[str, ...]]

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv bench.provision --json`.
        """
        return {**asdict(self), "medians": self.medians()}

    def medians(self) -> list[dict[str, Any]]:
        """
        Return one line for each tool, link and kind of run, with the ratio to ours.
        """
        keys = dict.fromkeys((run.link, run.is_first, run.tool) for run in self.runs)
        return [self._median(*key) for key in sorted(keys, key=lambda key: (key[0], not key[1]))]

    def _median(self, link: str, is_first: bool, tool: str) -> dict[str, Any]:
        runs = list(self._runs(link, is_first, tool))
        ours = list(self._runs(link, is_first, OURS))
        wall_s = statistics.median(run.wall_s for run in runs)
        ratio = wall_s / statistics.median(run.wall_s for run in ours) if ours else None
        return {
            "link": link,
            "run": "first" if is_first else "again",
            "tool": tool,
            "wall_s": round(wall_s, 2),
            "ratio": None if ratio is None else round(ratio, 1),
            "cpu_s": round(statistics.median(run.cpu_s for run in runs), 2),
            "commands": round(statistics.median(run.commands for run in runs), 1),
        }

    def _runs(self, link: str, is_first: bool, tool: str) -> Iterable[ProvisionTime]:
        wanted = (link, is_first, tool)
        return (run for run in self.runs if (run.link, run.is_first, run.tool) == wanted)

    def table(self) -> Grid:
        grid = Grid(("link", "run", "tool", "time", "to ours", "processor", "SSH commands a host"))
        for line in self.medians():
            ratio = "" if line["ratio"] is None else f"{line['ratio']:.1f}"
            grid.add_row(
                line["link"],
                line["run"],
                line["tool"],
                f"{line['wall_s']:.1f} s",
                ratio,
                f"{line['cpu_s']:.1f} s",
                f"{line['commands']:.0f}",
            )
        done = self.resources - len(self.left_out)
        grid.notes.append(
            f"{self.hosts} hosts; slipway brings {self.resources} resources, its peers {done}: "
            f"they have no module for {', '.join(self.left_out) or 'none'}"
        )
        grid.notes += [
            f"{tool}: slipway would also change {', '.join(names)}"
            for tool, names in self.unlike.items()
            if names
        ]
        return grid
