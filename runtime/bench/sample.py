"""
What one run of a line showed, and what several runs of it show together.  Pure.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from runtime.bench.recorder import Launched
from runtime.bench.roofline import Model, Rates, least_s
from runtime.bench.work import Work

FULL = 0.9  # a step with this share of the most decodes that any has is one of the steady part


@dataclass(frozen=True, slots=True)
class Ceilings:
    """
    What the device did when it did nothing else, in this run.

    Attributes:
        copy_gb_s: Read and written, together.
        read_gb_s: Read only.
        matmul_tflop_s: Of a large product of random matrices, in the model's type.
    """

    copy_gb_s: float
    read_gb_s: float
    matmul_tflop_s: float

    @property
    def rates(self) -> Rates:
        """
        The best of each.
        """
        return Rates(max(self.copy_gb_s, self.read_gb_s) * 1e9, self.matmul_tflop_s * 1e12)


@dataclass(frozen=True, slots=True)
class RunSample:
    """
    One run.  Of a peer only the first two are known.

    Attributes:
        tokens_per_s: New tokens over all of the time, the prompts' included.
        first_ms, last_first_ms: Until a request has its first token: the median of them, and the
            last one.
        step_ms: Of a step of the steady part: decodes only, and nearly as many as there ever are.
        host_ms: Of a step, without waiting for the device.
        of_copy, of_read: Bytes that the steady steps must read, over their time and the ceiling.
        of_roofline: The least time of all steps, over the time they took.
        prefill_tflop_s, counted_tflop_s: Of a lone prompt; see `roofline.Model`.
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
class Run:
    """
    What our engine was seen to do.

    Attributes:
        first_s: Of each request, from the beginning to its first token.
    """

    wall_s: float
    waited_s: float
    first_s: Sequence[float]
    launched: Sequence[Launched]


def make_sample(work: Work, run: Run, model: Model, ceilings: Ceilings) -> RunSample:
    steps = [entry.step for entry in run.launched]
    steady, steady_s = find_steady(run.launched)
    gb_s = None
    if steady:
        gb_s = sum(model.cost(entry.step).read_bytes for entry in steady) / steady_s / 1e9
    prompt = len(work[0].prompt)
    is_prefill = len(work) == 1 and work[0].new == 1
    return RunSample(
        wall_s=run.wall_s,
        tokens_per_s=sum(request.new for request in work) / run.wall_s,
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


def find_steady(launched: Sequence[Launched]) -> tuple[list[Launched], float]:
    """
    Return the steps of the steady part, and the seconds that they took together.

    A step takes from the end of the one before it, which must be of decodes only too, to its own.
    """
    alone = [len(e.step.decodes) for e in launched if not e.step.chunks]
    least = FULL * max(alone, default=0)
    found, total_s = [], 0.0
    for before, entry in pairwise(launched):
        if before.step.chunks or entry.step.chunks or len(entry.step.decodes) < least:
            continue
        if before.done_s is not None and entry.done_s is not None:
            found.append(entry)
            total_s += entry.done_s - before.done_s
    return found, total_s


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    least: float
    most: float


def spreads(samples: Sequence[RunSample]) -> dict[str, Spread | None]:
    """
    Return the median and the ends of every number that all runs have.
    """
    found: dict[str, Spread | None] = {}
    for field in fields(RunSample):
        values = [getattr(sample, field.name) for sample in samples]
        known = [value for value in values if value is not None]
        found[field.name] = (
            Spread(statistics.median(known), min(known), max(known)) if known else None
        )
    return found
