"""
Times `inv rollback` on lab hosts: until no host gives the bad version traffic, and in all.

A program inside each host reads HAProxy's weights every 50 ms.  Only a slot that runs already can
take the traffic at once: the old slot is kept warm, and in one run it is stopped.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.cli.grid import Grid
from deploy.drill.checkout import Operator, copy_checkout, must_run
from deploy.drill.drill_lab import MODELS, VERSIONS, DrillLab
from deploy.drill.host_state import HostState
from deploy.drill.host_watch import HostWatch
from deploy.errors import CommandFailed
from deploy.lab import lab
from deploy.wiring.checkout import ROOT
from deploy.wiring.lab_models import make_lab_model

LAB_NUMBER = 9  # the drill's own labs have lower ones
LOOK_S = 0.05

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RollbackTime:
    """
    One rollback.

    Attributes:
        dead: Host that was down; None: none was.
        old_slot: The target's slot before: warm or stopped.
        off_s: Seconds from the start of the command's process until the bad version had no weight,
            by host.
        command_s: Seconds until the process ended.
        lost: Requests lost on hosts that were up.
    """

    dead: str | None
    off_s: Mapping[str, float]
    command_s: float
    exit_code: int
    lost: int
    old_slot: str = "warm"

    @property
    def worst_off_s(self) -> float:
        return max(self.off_s.values())


@dataclass(frozen=True)
class RollbackTimes:
    runs: tuple[RollbackTime, ...]
    hosts: int

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv bench.rollback --json`.
        """
        return {
            "hosts": self.hosts,
            "runs": [
                {
                    "dead": run.dead,
                    "old_slot": run.old_slot,
                    "off_s": {host: round(seconds, 2) for host, seconds in run.off_s.items()},
                    "command_s": round(run.command_s, 2),
                    "exit_code": run.exit_code,
                    "lost": run.lost,
                }
                for run in self.runs
            ],
        }

    def table(self) -> Grid:
        grid = Grid(
            ("old slot", "dead host", "bad version off, slowest host", "command", "exit", "lost")
        )
        for run in self.runs:
            off, whole = f"{run.worst_off_s:.2f} s", f"{run.command_s:.2f} s"
            dead, ended = run.dead or "-", str(run.exit_code)
            grid.add_row(run.old_slot, dead, off, whole, ended, str(run.lost))
        for label, runs in (
            ("all up", self._with("warm", is_dead=False)),
            ("one dead", self._with("warm", is_dead=True)),
            ("all up, old slot stopped", self._with("stopped", is_dead=False)),
        ):
            if runs:
                off_s = statistics.median(run.worst_off_s for run in runs)
                command_s = statistics.median(run.command_s for run in runs)
                grid.notes.append(
                    f"{self.hosts} hosts, {label}: median {off_s:.2f} s until the bad version was "
                    f"off, {command_s:.2f} s in all"
                )
        return grid

    def _with(self, old_slot: str, *, is_dead: bool) -> list[RollbackTime]:
        return [
            run
            for run in self.runs
            if run.old_slot == old_slot and (run.dead is not None) is is_dead
        ]


def off_after(states: Sequence[HostState], bad_slot: str, began_s: float) -> float | None:
    """
    Return the seconds from *began_s* after which *bad_slot* has no weight any more; None: never.

    Pure.  A state without weights, of a HAProxy that did not answer, counts as traffic.
    """
    off_s: float | None = None
    for state in states:
        if state.weights.get(bad_slot, 100):
            off_s = None
        elif off_s is None:
            off_s = max(0.0, state.at_s - began_s)
    return off_s


def time_rollbacks(*, hosts: int, runs: int, keep: bool, progress: Progress) -> RollbackTimes:
    """
    Release a second version and roll it back: *runs* times, once from a stopped slot, and once
    with a dead host.

    Raises:
        DeployError: The lab did not come up, or a command failed.
    """
    models = [make_lab_model(kind, None, progress) for kind in MODELS]
    with tempfile.TemporaryDirectory(prefix="slipway-rollback-") as folder:
        checkout = copy_checkout(ROOT, Path(folder) / "checkout")
        on = DrillLab(LAB_NUMBER, hosts, (models[0], models[1]), Path(folder), progress)
        try:
            on.up(checkout)
            old_slots = ["warm"] * runs + ["stopped"]
            timed = [_time_one(on, checkout, old_slot, None, progress) for old_slot in old_slots]
            timed.append(_time_one(on, checkout, "warm", on.names[-1], progress))
        finally:
            on.leave_up() if keep else on.down()
    return RollbackTimes(tuple(timed), hosts)


def _time_one(
    on: DrillLab, checkout: Path, old_slot: str, dead: str | None, progress: Progress
) -> RollbackTime:
    on.write_fleet_file(keep_old=old_slot)
    must_run(checkout, on.words("release", "--version", VERSIONS[1], "--allow-older", "--yes"))
    if dead:
        lab.crash(dead, progress=progress, config=on.config)
    up = [name for name in on.names if name != dead]
    states: dict[str, list[HostState]] = {name: [] for name in up}
    watches = [
        HostWatch(
            on.config,
            name,
            interval_s=LOOK_S,
            port=0,
            on_state=lambda host, state: states[host].append(state),
        )
        for name in up
    ]
    for watch in watches:
        watch.start()
    try:
        _wait_for_looks(states)
        bad = {name: next(s for s, pct in states[name][-1].weights.items() if pct) for name in up}
        began_s, began_at = time.monotonic(), time.time()
        ended = Operator(checkout, on.words("rollback", "--yes")).wait(120.0)
        time.sleep(4 * LOOK_S)
    finally:
        for watch in watches:
            watch.stop()
    off_s: dict[str, float] = {}
    for name in up:
        after_s = off_after(states[name], bad[name], began_s)
        if after_s is None:
            raise CommandFailed(
                f"{name}: the bad version still has traffic",
                why=f"inv rollback ended with {ended.code}: {ended.progress[-400:]}",
                fix="inv bench.rollback --keep, then inv status",
            )
        off_s[name] = after_s
    lost = on.lost(began_at, time.time())
    result = RollbackTime(
        dead,
        off_s,
        ended.took_s,
        ended.code,
        lost=sum(n for host, n in lost.items() if host != dead),
        old_slot=old_slot,
    )
    progress(f"{old_slot}: off after {result.worst_off_s:.2f} s, {result.command_s:.2f} s in all")
    if dead:
        lab.start(dead, progress=progress, config=on.config)
    return result


def _wait_for_looks(states: Mapping[str, Sequence[HostState]]) -> None:
    deadline_s = time.monotonic() + 10.0
    while not all(looks and looks[-1].weights for looks in states.values()):
        if time.monotonic() > deadline_s:
            raise CommandFailed(
                "a host shows no weights",
                why=f"looks so far: { {name: len(looks) for name, looks in states.items()} }",
                fix="inv lab.status; the host must run and have HAProxy",
            )
        time.sleep(0.05)
