"""
Computes the results of one run of a line, and the spread over several runs.  Pure.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from runtime.bench.recorder import LaunchedStep
from runtime.bench.roofline import CostModel, Rates, least_s
from runtime.bench.work import Work

FULL = 0.9  # a steady step has at least this share of the largest step's decodes


@dataclass(frozen=True, slots=True)
class Ceilings:
    """
    The device's limits, measured in the same session with no other load.

    Attributes:
        copy_gb_s: Bytes read and written by a copy.
        read_gb_s: Bytes read by a sum.
        matmul_tflop_s: Rate of a large product of random matrices, in the model's type.
    """

    copy_gb_s: float
    read_gb_s: float
    matmul_tflop_s: float

    @property
    def rates(self) -> Rates:
        """
        The best bandwidth, and the rate of the product.
        """
        return Rates(max(self.copy_gb_s, self.read_gb_s) * 1e9, self.matmul_tflop_s * 1e12)


@dataclass(frozen=True, slots=True)
class RunSample:
    """
    The results of one run.  Peers report only the first two.

    Attributes:
        tokens_per_s: New tokens over the whole time, prefill included.
        first_ms, last_first_ms: Time to first token: the median, and the largest.
        step_ms: Mean time of a steady step: decodes only, and nearly the most of any step.
        host_ms: Mean CPU time of a step, without waiting for the device.
        of_copy, of_read: Least bytes of the steady steps, over their time and each ceiling.
        of_roofline: Least time of all steps, over the time of the run.
        prefill_tflop_s, counted_tflop_s: Of a line with one prompt; see `roofline.CostModel`.
    """

    wall_s: float
    tokens_per_s: float
    first_ms: float | None = None
    last_first_ms: float | None = None
    step_ms: float | None = None
    host_ms: float | None = None
    of_copy: float | None = None
    of_read: float | None = None
    of_roofline: float | None = None
    prefill_tflop_s: float | None = None
    counted_tflop_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineRun:
    """
    The measurements of one run of our engine.

    Attributes:
        waited_s: Time spent waiting for the device.
        first_s: Time to first token of each request.
        launched: All steps, in order.
    """

    wall_s: float
    waited_s: float
    first_s: Sequence[float]
    launched: Sequence[LaunchedStep]


def make_sample(work: Work, run: EngineRun, model: CostModel, ceilings: Ceilings) -> RunSample:
    steps = [entry.step for entry in run.launched]
    steady, steady_s = find_steady(run.launched)
    gb_s = None
    if steady:
        gb_s = sum(model.cost(entry.step).read_bytes for entry in steady) / steady_s / 1e9
    prompt = len(work[0].prompt)
    is_prefill = len(work) == 1 and work[0].new_tokens == 1
    return RunSample(
        wall_s=run.wall_s,
        tokens_per_s=sum(request.new_tokens for request in work) / run.wall_s,
        first_ms=statistics.median(run.first_s) * 1e3,
        last_first_ms=max(run.first_s) * 1e3,
        step_ms=steady_s / len(steady) * 1e3 if steady else None,
        host_ms=(run.wall_s - run.waited_s) / len(steps) * 1e3,
        of_copy=gb_s and gb_s / ceilings.copy_gb_s,
        of_read=gb_s and gb_s / ceilings.read_gb_s,
        of_roofline=least_s(model, steps, ceilings.rates) / run.wall_s,
        prefill_tflop_s=model.prefill_flops(prompt) / run.wall_s / 1e12 if is_prefill else None,
        counted_tflop_s=model.counted_flops(prompt) / run.wall_s / 1e12 if is_prefill else None,
    )


def find_steady(launched: Sequence[LaunchedStep]) -> tuple[list[LaunchedStep], float]:
    """
    Return the steady steps, and their total time in seconds.

    A step's time counts from the end of the step before it, which must have only decodes too.
    """
    alone = [len(e.step.decodes) for e in launched if not e.step.chunks]
    least = FULL * max(alone, default=0)
    steady, total_s = [], 0.0
    for before, entry in pairwise(launched):
        if before.step.chunks or entry.step.chunks or len(entry.step.decodes) < least:
            continue
        if before.done_s is not None and entry.done_s is not None:
            steady.append(entry)
            total_s += entry.done_s - before.done_s
    return steady, total_s


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    least: float
    most: float


def spreads(samples: Sequence[RunSample]) -> dict[str, Spread | None]:
    """
    Return each field's median, least and most over *samples*; None if no sample has it.
    """
    by_field: dict[str, Spread | None] = {}
    for field in fields(RunSample):
        values = [getattr(sample, field.name) for sample in samples]
        known = [value for value in values if value is not None]
        by_field[field.name] = (
            Spread(statistics.median(known), min(known), max(known)) if known else None
        )
    return by_field
