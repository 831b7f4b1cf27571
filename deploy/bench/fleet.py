"""
Times releases to simulated fleets of several sizes, each in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence

from deploy.bench.fleet_report import FleetFigures, FleetTimes
from deploy.errors import CommandFailed, UsageError
from deploy.wiring.checkout import ROOT

LIMIT_S = 900.0  # for one fleet


def time_fleets(
    counts: Sequence[int], *, latency_ms: float, progress: Callable[[str], None]
) -> FleetTimes:
    """
    Release to *counts* hosts and roll back, one fleet after the other.

    Raises:
        UsageError: One of *counts* is less than 1.
        CommandFailed: A release or a rollback did not end as it should.
    """
    if min(counts) < 1:
        raise UsageError(
            f"--counts {min(counts)}: no fleet is so small",
            why="a fleet has at least one host",
            fix="inv bench.fleet --counts 10,100",
        )
    return FleetTimes(tuple(_time_one(count, latency_ms, progress) for count in counts))


def _time_one(count: int, latency_ms: float, progress: Callable[[str], None]) -> FleetFigures:
    progress(f"{count} hosts")
    argv = [sys.executable, "-m", "deploy.bench.one_fleet", str(count), str(latency_ms)]
    try:
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(
            f"{count} simulated hosts: the release did not end",
            why=f"after {LIMIT_S:.0f} s it was not done",
            fix="fewer hosts: --counts",
        ) from None
    if done.returncode != 0:
        raise CommandFailed(
            f"{count} simulated hosts: the release failed",
            why=" / ".join(done.stderr.strip().split("\n")[-4:]),
            fix=f"to see all of it: {' '.join(argv)}",
        )
    figures = FleetFigures.of(json.loads(done.stdout))
    progress(f"{count} hosts: {figures.wall_s:.1f} s, {figures.cpu_s:.1f} s of the processor")
    return figures
