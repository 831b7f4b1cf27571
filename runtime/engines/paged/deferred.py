"""
A step whose logits are computed, and whose tokens wait for masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from runtime.engines.paged.step import Running, Step, StepOutput


class DeviceRunning(Running, Protocol):
    """
    A launched step of one device.

    Attributes:
        done: Recorded behind the step; None on a CPU.
    """

    @property
    def done(self) -> "torch.cuda.Event | None": ...


Finish = Callable[[Step, Tensor, Tensor], DeviceRunning]


class DeferredStep:
    """
    See `step.Running`.

    Args:
        logits, result: Of the step: those that *finish* takes.  They may lie in memory that the
            next step writes: call `keep` before it.
        finish: Samples the rows of a step with masks.
    """

    def __init__(self, step: Step, logits: Tensor, result: Tensor, finish: Finish) -> None:
        self._step, self._finish = step, finish
        self._waiting: tuple[Tensor, Tensor] | None = (logits, result)
        self._running: DeviceRunning | None = None

    awaits_masks = True

    @property
    def done(self) -> "torch.cuda.Event | None":
        assert self._running is not None, "mask first"
        return self._running.done

    def keep(self) -> None:
        """
        Copy what the next step may overwrite.
        """
        if self._waiting is not None:
            logits, result = self._waiting
            self._waiting = logits.clone(), result.clone()

    def mask(self, masks: Sequence[tuple[int, bytes]]) -> None:
        assert self._waiting is not None, "masked once"
        logits, result = self._waiting
        self._running = self._finish(replace(self._step, masks=tuple(masks)), logits, result)
        self._waiting = None

    def collect(self) -> StepOutput:
        assert self._running is not None, "mask first"
        return self._running.collect()
