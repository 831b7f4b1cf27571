"""
Records the steps that the scheduler launches, with their times.  Wraps the runner.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.engines.paged.step import Running, Step, StepOutput, StepRunner


@dataclass(slots=True)
class LaunchedStep:
    """
    One launched step.

    Attributes:
        done_s: Time at which its tokens were collected; None until then.
    """

    step: Step
    done_s: float | None = None


class Recorder:
    """
    A `StepRunner` that records every step.

    Attributes:
        launched: All steps, in the order of their launch.
        waited_s: Time spent waiting for the device; the CPU worked for the rest of the run.
    """

    def __init__(self, runner: StepRunner, clock: Callable[[], float]) -> None:
        self._runner, self._clock = runner, clock
        self.launched: list[LaunchedStep] = []
        self.waited_s = 0.0

    def launch(self, step: Step) -> "Running":
        running = self._runner.launch(step)
        entry = LaunchedStep(step)
        self.launched.append(entry)
        return _RecordedStep(self, running, entry)

    def collect(self, running: Running, entry: LaunchedStep) -> StepOutput:
        started_s = self._clock()
        output = running.collect()
        entry.done_s = self._clock()
        self.waited_s += entry.done_s - started_s
        return output

    def clear(self) -> None:
        self.launched, self.waited_s = [], 0.0


@dataclass(frozen=True, slots=True)
class _RecordedStep:
    recorder: Recorder
    running: Running
    entry: LaunchedStep

    @property
    def awaits_masks(self) -> bool:
        return self.running.awaits_masks

    def mask(self, masks: Sequence[tuple[int, bytes]]) -> None:
        self.running.mask(masks)

    def collect(self) -> StepOutput:
        return self.recorder.collect(self.running, self.entry)
