"""
Cells of the drill: one command, one journal line, one fault; what happened, and whether that is
good.  Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from deploy.drill.faults import Fault
from deploy.drill.lines import Line

CHECK_S = 5.0  # a host looks every 5 s whether its way back is due


class Task(StrEnum):
    """
    The command that a fault hits.
    """

    RELEASE = "release"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Cell:
    task: Task
    line: Line
    fault: Fault


@dataclass(frozen=True, slots=True)
class Recovery:
    """
    The command of another checkout, after the cell.

    Attributes:
        versions: What each host serves afterwards; None: not one version.
        fallback: What was done in its place, as its error said; empty: nothing.
    """

    task: str
    exit_code: int
    took_s: float
    versions: Mapping[str, str | None]
    error: str = ""
    fallback: str = ""

    @property
    def words(self) -> str:
        return f"{self.task}, then {self.fallback}" if self.fallback else self.task

    @property
    def is_good(self) -> bool:
        return self.exit_code == 0 and _is_one(self.versions)


@dataclass(frozen=True, slots=True)
class CellResult:
    """
    What happened in a cell.

    Attributes:
        is_reached: The line came; otherwise nothing was injected.
        old, new: Version that served before, and the one that the command brings.
        settled_s: Seconds from the fault until every host served one version for good, without
            anybody's help; None: not by the end of the wait.
        waited_from_s: Seconds from the fault to the time from which a host's own limit counts:
            the operator's end, the end of the host's boot or freeze, else the fault.
        limit_s: Longest time from then that a host may take.
        operator_exit: Exit code of the command; negative: a signal; None: it did not end.
        states: What each host served at the end of the wait, as text.
        versions: {host: version}; None: not one version.
        lost: Requests that failed, by host.
    """

    cell: Cell
    is_reached: bool
    old: str = ""
    new: str = ""
    settled_s: float | None = None
    waited_from_s: float = 0.0
    limit_s: float = 0.0
    operator_exit: int | None = None
    operator_s: float | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    recovery: Recovery | None = None
    took_s: float = 0.0
    problem: str | None = None

    @property
    def is_mixed(self) -> bool:
        """
        True if hosts served different versions when nobody had touched them any more.
        """
        return len(set(self.versions.values()) - {None}) > 1

    @property
    def lost_elsewhere(self) -> int:
        """
        Failed requests of hosts that did not die; 0 is wanted.
        """
        hit = self.cell.line.host if self.cell.fault.stops_service else None
        return sum(count for host, count in self.lost.items() if host != hit)

    @property
    def lost_there(self) -> int:
        """
        Failed requests of the host that died.
        """
        return sum(self.lost.values()) - self.lost_elsewhere

    @property
    def faults(self) -> list[str]:
        """
        What is not as promised; empty in a good cell.
        """
        found = []
        if self.problem:
            found.append(self.problem)
        if not self.is_reached:
            return found
        if self.settled_s is None:
            found.append(f"not settled: {', '.join(f'{h}: {s}' for h, s in self.states.items())}")
        elif self.settled_s - self.waited_from_s > self.limit_s:
            late_s = self.settled_s - self.waited_from_s
            found.append(f"settled after {late_s:.1f} s, more than {self.limit_s:.0f} s")
        if self.lost_elsewhere:
            found.append(f"{self.lost_elsewhere} requests lost on hosts that did not die")
        if self.recovery is not None and not self.recovery.is_good:
            found.append(
                f"{self.recovery.words} of another checkout: exit {self.recovery.exit_code}, "
                f"{dict(self.recovery.versions)} {self.recovery.error}"
            )
        return found

    @property
    def is_good(self) -> bool:
        return self.is_reached and not self.faults

    def as_json(self) -> dict[str, Any]:
        """
        Return the cell as an entry of `cells` in `inv drill --json`.
        """
        recovery = self.recovery
        return {
            "task": str(self.cell.task),
            "line": self.cell.line.name,
            "merged": list(self.cell.line.merged),
            "fault": str(self.cell.fault),
            "is_reached": self.is_reached,
            "is_good": self.is_good,
            "faults": self.faults,
            "old": self.old,
            "new": self.new,
            "settled_s": _rounded(self.settled_s),
            "waited_from_s": _rounded(self.waited_from_s),
            "limit_s": self.limit_s,
            "is_mixed": self.is_mixed,
            "versions": dict(self.versions),
            "states": dict(self.states),
            "lost": dict(self.lost),
            "lost_elsewhere": self.lost_elsewhere,
            "operator_exit": self.operator_exit,
            "operator_s": _rounded(self.operator_s),
            "recovery": None if recovery is None else asdict(recovery),
            "took_s": _rounded(self.took_s),
        }


def cells_of(task: Task, lines: Sequence[Line], faults: Sequence[Fault]) -> list[Cell]:
    """
    Return every pair of *lines* and *faults*.
    """
    return [Cell(task, line, fault) for line in lines for fault in faults]


def spread(cells: Sequence[Cell], count: int) -> list[Cell]:
    """
    Return *count* of *cells*: each line and each fault about equally often, the same every time.
    """
    if count >= len(cells):
        return list(cells)
    by_fault: dict[Fault, list[Cell]] = {}
    for cell in cells:
        by_fault.setdefault(cell.fault, []).append(cell)
    chosen: list[Cell] = []
    columns = list(by_fault.values())
    for turn in range(count):
        column = columns[turn % len(columns)]
        # Steps of the golden ratio spread over a column without meeting a row twice too soon.
        position = int((turn * 0.618034 % 1) * len(column))
        chosen.append(column.pop(position))
        if not column:
            columns.remove(column)
    return chosen


def _is_one(versions: Mapping[str, str | None]) -> bool:
    return len(set(versions.values())) == 1 and None not in versions.values()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
