"""
Runs every line on every system: warm-up, runs, result.  A failure does not stop the others.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.bench.report import BenchReport, Result
from runtime.bench.sample import RunSample
from runtime.bench.shapes import ModelShape
from runtime.bench.system import NotInstalled, OpenTimedSystem, TimedSystem
from runtime.bench.work import Line, draw, draw_warm_up

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """
    The work of one session.

    Attributes:
        runs: Number of runs of each line.
        runs_mix: The same for mixes: lines whose prompts differ in length.
    """

    shape: ModelShape
    device: str
    lines: tuple[Line, ...]
    runs: int
    runs_mix: int
    seed: int

    def runs_of(self, line: Line) -> int:
        return self.runs_mix if line.is_mix else self.runs


def run_session(
    plan: SessionPlan,
    systems: Mapping[str, OpenTimedSystem],
    report: BenchReport,
    progress: Progress,
) -> None:
    """
    Measure all *systems*, one after the other, so that each has the device for itself.
    """
    for name, open_system in systems.items():
        progress(f"{name}: opening")
        try:
            system = open_system(plan.shape, plan.device)
        except NotInstalled:
            report.absent(name)
            continue
        except Exception as error:
            progress(traceback.format_exc())
            report.broken(name, _error_line(error))
            continue
        report.opened(name, system.version)
        for line in plan.lines:
            progress(f"{name}: {line.name}")
            report.line(name, _measure(system, line, plan, progress))
        try:
            system.close()
        except Exception:
            progress(f"{name}: did not close\n{traceback.format_exc()}")


def _measure(system: TimedSystem, line: Line, plan: SessionPlan, progress: Progress) -> Result:
    vocabulary = plan.shape.config.vocabulary
    samples: list[RunSample] = []
    note = ""
    try:
        warm_up = draw_warm_up(line, vocabulary=vocabulary, seed=plan.seed)
        system.run(system.trim(line, warm_up)[0])
        started_s = time.monotonic()
        for run in range(plan.runs_of(line)):
            took_s = time.monotonic() - started_s
            if samples and system.line_s is not None and took_s > system.line_s:
                break
            work = draw(line, vocabulary=vocabulary, seed=plan.seed, run=run)
            work, note = system.trim(line, work)
            samples.append(system.run(work))
    except Exception as error:
        progress(traceback.format_exc())
        return Result(line, (), error=_error_line(error))
    if len(samples) < plan.runs_of(line):
        note = f"{note}; only {len(samples)} of {plan.runs_of(line)} runs".removeprefix("; ")
    return Result(line, tuple(samples), note)


def _error_line(error: Exception) -> str:
    """
    Return the type and the first line of *error*.
    """
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"
