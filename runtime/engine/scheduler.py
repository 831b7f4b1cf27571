"""
Who is computed in the next step.  Joins queue, batcher and runner; no clock, socket or torch.

Requests join and leave between two steps, so a short one never waits for a long neighbour.
"""

import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.batcher import BatchPolicy, Pending, Take, take
from runtime.engine.protocol import Ending, Report, Submit


@dataclass(frozen=True, slots=True)
class Emission:
    """
    What one step made for one request.

    Attributes:
        tokens: New tokens, in order; empty when it needs another step for the first.
        is_finite: Whether the logits behind them were; if not, `tokens` means nothing.
    """

    id: int
    tokens: tuple[int, ...]
    is_finite: bool


class Runner(Protocol):
    """
    What computes: it knows rows, tokens and caches, and nothing of queues, clocks or clients.
    """

    def add(self, jobs: Sequence[Submit]) -> None:
        """
        Take *jobs* into the batch; the next step computes their prompts.
        """

    def drop(self, ids: Collection[int]) -> None:
        """
        Forget these rows and free what they hold.
        """

    def step(self) -> Sequence[Emission]:
        """
        Compute once; at most one emission a row.
        """

    def reset(self) -> None:
        """
        Forget every row, whatever state a failed step left.
        """


@dataclass(frozen=True, slots=True)
class Capacity:
    max_requests: int
    max_tokens: int
    max_wait_s: float


@dataclass(slots=True)
class _Row:
    job: Submit
    deadline_s: float
    made: int = 0  # tokens so far

    @property
    def budget(self) -> int:
        return len(self.job.tokens) + self.job.max_tokens


class Scheduler:
    """
    The queue and the batch of one engine.

    Args:
        ends: Token ids that end an answer; they are not part of it.
    """

    def __init__(self, runner: Runner, capacity: Capacity, ends: Collection[int]) -> None:
        self._runner = runner
        self._capacity = capacity
        self._ends = frozenset(ends)
        self._jobs: dict[int, Submit] = {}  # waiting
        self._queue: tuple[Pending, ...] = ()  # the same, in arrival order
        self._rows: dict[int, _Row] = {}
        self._steps = 0

    @property
    def is_idle(self) -> bool:
        return not self._rows and not self._queue

    def submit(self, job: Submit, now_s: float) -> None:
        pending = Pending(
            id=job.id,
            arrived_s=now_s,
            deadline_s=now_s + job.timeout_s,
            tokens=len(job.tokens) + job.max_tokens,
        )
        self._jobs[job.id] = job
        self._queue = (*self._queue, pending)

    def cancel(self, id: int) -> None:
        """
        Forget a request; one that has already ended is none.
        """
        if self._jobs.pop(id, None):
            self._queue = tuple(p for p in self._queue if p.id != id)
        if self._rows.pop(id, None):
            self._runner.drop((id,))

    def wait_s(self, now_s: float) -> float | None:
        """
        Return how long nothing needs doing; None: until something arrives.
        """
        taken = self._take(now_s)
        if self._rows or taken.batch or taken.expired:
            return 0.0
        return None if taken.wake_at_s is None else taken.wake_at_s - now_s

    def turn(self, now_s: float) -> Report:
        """
        Answer who is late, let in whom there is room for, compute one step.
        """
        ended: list[tuple[int, str, str]] = []
        self._expire_rows(now_s, ended)
        taken = self._take(now_s)
        for pending in taken.expired:
            del self._jobs[pending.id]
            ended.append((pending.id, Ending.EXPIRED, "it was still waiting"))
        self._queue = taken.rest
        joining = [self._jobs.pop(p.id) for p in taken.batch]
        for job, pending in zip(joining, taken.batch, strict=True):
            self._rows[job.id] = _Row(job, pending.deadline_s)

        tokens: list[tuple[int, int]] = []
        batch = len(self._rows)
        if batch:
            self._steps += 1
            try:
                if joining:
                    self._runner.add(joining)
                emissions = self._runner.step()
            except Exception as error:
                ended += self._fail_all(error)
            else:
                self._settle(emissions, tokens, ended)
        return Report(tokens, ended, len(self._rows), len(self._queue), batch, self._steps)

    def _take(self, now_s: float) -> Take:
        used = sum(row.budget for row in self._rows.values())
        room = BatchPolicy(
            max_requests=self._capacity.max_requests - len(self._rows),
            max_tokens=self._capacity.max_tokens - used,
            max_wait_s=0.0 if self._rows else self._capacity.max_wait_s,
        )
        return take(self._queue, now_s, room)

    def _expire_rows(self, now_s: float, ended: list[tuple[int, str, str]]) -> None:
        late = [id for id, row in self._rows.items() if row.deadline_s <= now_s]
        for id in late:
            row = self._rows.pop(id)
            ended.append((id, Ending.EXPIRED, f"{row.made} of {row.job.max_tokens} tokens"))
        if late:
            self._runner.drop(late)

    def _fail_all(self, error: Exception) -> list[tuple[int, str, str]]:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} in {where.name}: {error}"
        failed = [(id, str(Ending.ERROR), detail) for id in self._rows]
        self._rows.clear()
        self._runner.reset()
        return failed

    def _settle(
        self,
        emissions: Sequence[Emission],
        tokens: list[tuple[int, int]],
        ended: list[tuple[int, str, str]],
    ) -> None:
        gone = []
        for emission in emissions:
            ending = self._take_in(emission, tokens)
            if ending is not None:
                gone.append(emission.id)
                ended.append((emission.id, ending, ""))
        for id in gone:
            del self._rows[id]
        if gone:
            self._runner.drop(gone)

    def _take_in(self, emission: Emission, tokens: list[tuple[int, int]]) -> Ending | None:
        if not emission.is_finite:
            return Ending.NONFINITE
        row = self._rows[emission.id]
        for token in emission.tokens:
            if token in self._ends:
                return Ending.STOP
            tokens.append((emission.id, token))
            row.made += 1
            if row.made == row.job.max_tokens:
                return Ending.LENGTH
        return None
