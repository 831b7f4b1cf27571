"""
Writes down what the runner is told, and when: stands between the scheduler and the runner.
"""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.engines.paged.step import Running, Step, StepOutput, StepRunner


@dataclass(slots=True)
class Launched:
    """
    Attributes:
        done_s: When its tokens were there; None until then.
    """

    step: Step
    done_s: float | None = None


class Recorder:
    """
    See `StepRunner`.

    Attributes:
        launched: Every step that was, in order.
        waited_s: Spent in waiting for the device; the rest of the time the CPU had work.
    """

    def __init__(self, runner: StepRunner, clock: Callable[[], float]) -> None:
        self._runner, self._clock = runner, clock
        self.launched: list[Launched] = []
        self.waited_s = 0.0

    def launch(self, step: Step) -> "Running":
        running = self._runner.launch(step)
        entry = Launched(step)
        self.launched.append(entry)
        return _Watched(self, running, entry)

    def collect(self, running: Running, entry: Launched) -> StepOutput:
        started_s = self._clock()
        outcome = running.collect()
        entry.done_s = self._clock()
        self.waited_s += entry.done_s - started_s
        return outcome

    def clear(self) -> None:
        self.launched, self.waited_s = [], 0.0


@dataclass(frozen=True, slots=True)
class _Watched:
    recorder: Recorder
    running: Running
    entry: Launched

    def collect(self) -> StepOutput:
        return self.recorder.collect(self.running, self.entry)
