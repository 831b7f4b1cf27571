"""
Report of the drill: tables for the terminal and for the page, and the JSON document.  Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.cli.grid import Cell as GridCell
from deploy.cli.grid import Grid
from deploy.drill.cells import CellResult, Task
from deploy.drill.faults import Fault

_LEGEND = (
    "seconds from the fault until every host served one version for good; m: hosts served "
    "different versions; -N: requests lost on the host that died; f: resume was refused and the "
    "rollback that it names done; RED: see below"
)


@dataclass(frozen=True)
class DrillReport:
    """
    Result of a drill.

    Attributes:
        skipped: Faults that this machine cannot inject, with the reason.
        policy: What the hosts were told: lease, canary and the like, for the reader.
    """

    results: tuple[CellResult, ...]
    took_s: float
    hosts: int
    labs: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    policy: Mapping[str, str] = field(default_factory=dict)

    @property
    def reached(self) -> tuple[CellResult, ...]:
        return tuple(result for result in self.results if result.is_reached)

    @property
    def red(self) -> tuple[CellResult, ...]:
        return tuple(result for result in self.results if result.faults)

    @property
    def is_good(self) -> bool:
        return bool(self.reached) and not self.red

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv drill --json`.
        """
        return {
            "outcome": "ok" if self.is_good else "failed",
            "cells": [result.as_json() for result in self.results],
            "reached": len(self.reached),
            "red": len(self.red),
            "skipped": dict(self.skipped),
            "policy": dict(self.policy),
            "hosts": self.hosts,
            "labs": self.labs,
            "took_s": round(self.took_s, 1),
        }

    def table(self) -> Grid:
        """
        Return the matrix of lines and faults.
        """
        faults = _faults(self.results)
        grid = Grid(("line", *map(str, faults)))
        for task in Task:
            for line, row in _rows(self.results, task).items():
                cells: list[str | GridCell] = [f"{task}: {line}"]
                cells += [_grid_cell(row.get(fault)) for fault in faults]
                grid.add_row(*cells)
        grid.notes.append(_LEGEND)
        grid.notes += [
            f"RED {result.cell.task}: {result.cell.line}, {result.cell.fault}: {why}"
            for result in self.red
            for why in result.faults
        ]
        grid.notes += [f"{fault}: not run: {why}" for fault, why in self.skipped.items()]
        grid.notes.append(self._sum())
        return grid

    def page(self) -> list[str]:
        """
        Return the tables of docs/reference/drill.md, in Markdown.
        """
        faults = _faults(self.results)
        lines: list[str] = []
        for task in Task:
            rows = _rows(self.results, task)
            if not rows:
                continue
            lines += ["", f"### `inv {task}`", ""]
            lines.append(f"| line | {' | '.join(map(str, faults))} | also stands for |")
            lines.append(f"| --- |{' --- |' * (len(faults) + 1)}")
            for name, row in rows.items():
                shown = " | ".join(_text(row.get(fault)) for fault in faults)
                merged = next(iter(row.values())).cell.line.merged
                lines.append(f"| {name} | {shown} | {', '.join(merged)} |")
        return [*lines, "", self._sum()]

    def _sum(self) -> str:
        settled = [result.settled_s for result in self.reached if result.settled_s is not None]
        slowest = f"{max(settled):.1f} s" if settled else "-"
        return (
            f"{len(self.reached)} cells, {len(self.red)} red, {self.took_s / 60:.1f} min; slowest "
            f"{slowest}; {sum(r.lost_elsewhere for r in self.reached)} requests lost on hosts that "
            f"did not die, {sum(r.lost_there for r in self.reached)} on those that did; "
            f"{sum(r.is_mixed for r in self.reached)} fleets mixed until the next command"
        )


def _faults(results: Sequence[CellResult]) -> list[Fault]:
    present = {result.cell.fault for result in results}
    return [fault for fault in Fault if fault in present]


def _rows(results: Sequence[CellResult], task: Task) -> dict[str, dict[Fault, CellResult]]:
    rows: dict[str, dict[Fault, CellResult]] = {}
    for result in results:
        if result.cell.task is task:
            rows.setdefault(result.cell.line.name, {})[result.cell.fault] = result
    return rows


def _grid_cell(result: CellResult | None) -> str | GridCell:
    if result is None or not result.is_reached:
        return GridCell(_text(result), "red" if result and result.faults else "dim")
    if result.faults:
        return GridCell(_text(result), "red")
    return GridCell(_text(result), "yellow" if result.is_mixed else "green")


def _text(result: CellResult | None) -> str:
    """
    Return a cell's few characters; an empty text for a pair that was not run.
    """
    if result is None:
        return ""
    if not result.is_reached:
        return "RED" if result.faults else "-"
    parts = ["RED"] if result.faults else []
    if result.settled_s is not None:
        parts.append(f"{result.settled_s:.1f}")
    if result.is_mixed:
        parts.append("m")
    if result.lost_there:
        parts.append(f"-{result.lost_there}")
    if result.recovery and result.recovery.fallback:
        parts.append("f")
    return " ".join(parts)
