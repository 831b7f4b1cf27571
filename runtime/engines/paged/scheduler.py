"""
Who is computed in the next step.  Joins queue, batcher, pages and runner; no clock, no torch.

Requests join and leave between two steps, so a short one never waits for a long neighbour.
A step is launched before the one ahead of it is collected, so the device never waits for Python:
what a step samples is known a turn later, and a row that has ended may be computed once in vain.
"""

import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from runtime.engines.base.protocol import FinishReason, Report, Submit
from runtime.engines.paged.batcher import Take
from runtime.engines.paged.blocks import Lease, PagePool
from runtime.engines.paged.oom_splits import StepSize, launch
from runtime.engines.paged.queue import Queue
from runtime.engines.paged.step import (
    Chunk,
    Decode,
    DeviceLost,
    Join,
    OutOfMemory,
    Runner,
    Running,
    Step,
)

Ended = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class Capacity:
    """
    Attributes:
        max_requests: Rows at once.
        step_tokens: Most tokens that a step computes, decodes first.  More than max_requests, or
            prompts wait while every row decodes.
        max_wait_s: Longest that the oldest request waits for company.
    """

    max_requests: int
    step_tokens: int
    max_wait_s: float


@dataclass(slots=True, eq=False)
class _Row:
    """
    Attributes:
        tokens: The prompt, and what is known of the answer.
        launched: Tokens at the front whose keys and values a launched step has computed.
        last: What `launched` is when its last token is sampled, which nobody computes.
    """

    job: Submit
    deadline_s: float
    slot: int
    lease: Lease
    tokens: list[int]
    launched: int
    last: int
    is_gone: bool = False

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.job.tokens)


@dataclass(frozen=True, slots=True)
class _Launched:
    """
    Attributes:
        sampled: The rows of its Outcome, in that order.
    """

    running: Running
    rows: Sequence[_Row]
    sampled: Sequence[_Row]
    prompt_tokens: int
    cached_tokens: int


class Scheduler:
    """
    The queue and the batch of one engine.

    Attributes:
        pool: The pages.
        memory_splits: How often a step was cut in two for want of memory.

    Args:
        ends: Token ids that end an answer; they are not part of it.
        rng: Draws the seeds of who has none.
    """

    def __init__(
        self,
        runner: Runner,
        capacity: Capacity,
        ends: Collection[int],
        pool: PagePool,
        rng: Random,
    ) -> None:
        self.pool = pool
        self.memory_splits = 0
        self._told_splits = 0
        self._runner = runner
        self._capacity = capacity
        self._ends = frozenset(ends)
        self._rng = rng
        self._queue = Queue(pool)
        self._refused: list[Ended] = []  # told by the next turn
        self._rows: dict[int, _Row] = {}
        self._prompts: dict[int, _Row] = {}  # rows that wait for a chunk, in arrival order
        self._decoding: dict[int, _Row] = {}  # rows that wait for a decode
        self._by_slot: dict[int, _Row] = {}
        self._free_slots = list(range(capacity.max_requests - 1, -1, -1))
        self._flight: list[_Launched] = []  # one turn's step; more where it was split
        self._size = StepSize(capacity.step_tokens)
        self._steps = 0
        self._is_held = False

    @property
    def is_idle(self) -> bool:
        return self.is_quiet and not self._queue and not self._refused

    @property
    def is_quiet(self) -> bool:
        """
        Whether nothing is being computed, for nobody.
        """
        return not self._rows and not self._flight

    def hold(self) -> None:
        """
        Let no more requests join, until `resume`: who runs finishes, who waits may expire.
        """
        self._is_held = True

    def resume(self) -> None:
        self._is_held = False

    def submit(self, job: Submit, now_s: float) -> None:
        pages = self.pool.count(len(job.tokens) + job.params.max_tokens)
        if pages >= self.pool.pages:
            why = f"it needs {pages} pages of the KV cache, which has {self.pool.pages - 1}"
            self._refused.append((job.id, FinishReason.ERROR, why))
        else:
            self._queue.push(job, now_s)

    def cancel(self, id: int) -> None:
        """
        Forget a request; one that has already ended is none.
        """
        self._queue.pop(id)
        self._refused = [ended for ended in self._refused if ended[0] != id]
        if row := self._rows.get(id):
            self._leave(row)

    def wait_s(self, now_s: float) -> float | None:
        """
        Return how long nothing needs doing; None: until something arrives.
        """
        if self._rows or self._flight or self._refused:
            return 0.0
        wake_at_s = self._queue.deadline_s()
        if wake_at_s is None:
            return None
        if not self._is_held:
            taken = self._take(now_s)
            if taken.batch:
                return 0.0
            if taken.wake_at_s is not None:
                wake_at_s = min(wake_at_s, taken.wake_at_s)
        return max(wake_at_s - now_s, 0.0)

    def turn(self, now_s: float) -> Report:
        """
        Answer who is late, launch a step with whom there is room for, report on the one ahead.
        """
        tokens: list[tuple[int, int]] = []
        ended, self._refused = self._refused, []
        self._expire(now_s, ended)
        step = self._plan(now_s)
        ahead, self._flight = self._flight, []
        failures = self._launch(step) if step.tokens else []
        settled = self._settle(ahead, tokens, ended)
        # After the step ahead, which may hold the last token of an answer.
        for rows, error in failures:
            self._fail(rows, error, ended)
        self._steps += len(settled)
        report = Report(
            tokens,
            ended,
            running=len(self._rows),
            waiting=len(self._queue),
            batch=len({row.job.id for part in settled for row in part.rows}),
            steps=self._steps,
            prompt_tokens=sum(part.prompt_tokens for part in settled),
            cached_tokens=sum(part.cached_tokens for part in settled),
            pages_used=self.pool.used,
            pages=self.pool.pages - 1,
        )
        # Not in a beat, for most of those are not sent.
        if (splits := self.memory_splits - self._told_splits) and not report.is_beat:
            self._told_splits = self.memory_splits
            report = replace(report, memory_splits=splits)
        return report

    def _expire(self, now_s: float, ended: list[Ended]) -> None:
        for id in self._queue.expire(now_s):
            ended.append((id, FinishReason.EXPIRED, "it was still waiting"))
        for row in [row for row in self._rows.values() if row.deadline_s <= now_s]:
            self._leave(row)
            ended.append(
                (
                    row.job.id,
                    FinishReason.EXPIRED,
                    f"{row.made} of {row.job.params.max_tokens} tokens",
                )
            )

    def _plan(self, now_s: float) -> Step:
        """
        Every decode, and of the prompts what fits behind them.
        """
        decoding = islice(self._decoding.values(), self._size.tokens)
        decodes = tuple(Decode(row.slot, row.launched) for row in decoding)
        room = self._size.tokens - len(decodes)
        asked = sum(len(row.tokens) - row.launched for row in self._prompts.values())
        joins = tuple(self._admit(now_s, room - asked))
        chunks = []
        for row in self._prompts.values():
            if room <= 0:
                break
            part = row.tokens[row.launched : row.launched + room]
            is_last = row.launched + len(part) == len(row.tokens)
            chunks.append(Chunk(row.slot, row.launched, part, is_last))
            room -= len(part)
        return Step(joins, decodes, tuple(chunks))

    def _admit(self, now_s: float, room: int) -> list[Join]:
        """
        Let in whom the next step has a token for; whoever joins is computed at once.
        """
        joins: list[Join] = []
        while room > 0 and not self._is_held and (batch := self._take(now_s).batch):
            for pending in batch:
                if room <= 0:
                    break
                row = self._join(pending.id)
                room -= len(row.tokens) - row.launched
                params = row.job.params
                if params.seed is None:
                    params = replace(params, seed=self._rng.getrandbits(63))
                joins.append(Join(row.slot, row.lease.pages, params))
        return joins

    def _take(self, now_s: float) -> Take:
        max_wait_s = 0.0 if self._rows else self._capacity.max_wait_s
        return self._queue.take(now_s, len(self._free_slots), max_wait_s)

    def _join(self, id: int) -> _Row:
        waiting = self._queue.pop(id)
        assert waiting is not None, id
        job, names = waiting.job, self._queue.names(waiting)
        lease = self.pool.lease(names, len(job.tokens), waiting.pending.tokens)
        row = _Row(
            job,
            waiting.pending.deadline_s,
            slot=self._free_slots.pop(),
            lease=lease,
            tokens=list(job.tokens),
            launched=lease.cached,
            last=len(job.tokens) + job.params.max_tokens - 1,
        )
        self._rows[job.id] = self._prompts[job.id] = self._by_slot[row.slot] = row
        return row

    def _launch(self, step: Step) -> list[tuple[list[_Row], Exception]]:
        """
        Launch *step*; return the rows that could not be, and why.
        """
        launches = launch(self._runner, step)
        for part, running in launches.parts:
            self._commit(part, running)
        self.memory_splits += launches.splits
        self._size.learn(launches)
        return [([self._by_slot[s] for s in slots], why) for slots, why in launches.failures]

    def _commit(self, part: Step, running: Running) -> None:
        decoded = [self._by_slot[decode.slot] for decode in part.decodes]
        is_partial = len(decoded) < len(self._decoding)
        for row in decoded:
            row.launched += 1
            if is_partial or row.launched == row.last:
                del self._decoding[row.job.id]
            if is_partial and row.launched < row.last:
                self._decoding[row.job.id] = row  # behind those that were not computed
        chunked = [self._by_slot[chunk.slot] for chunk in part.chunks]
        sampled = decoded.copy()
        for row, chunk in zip(chunked, part.chunks, strict=True):
            row.launched += len(chunk.tokens)
            self.pool.register(row.lease, row.tokens, row.launched)
            if chunk.is_last:
                sampled.append(row)
                del self._prompts[row.job.id]
                if row.launched < row.last:
                    self._decoding[row.job.id] = row
        cached = sum(self._by_slot[join.slot].lease.cached for join in part.joins)
        prompt_tokens = part.tokens - len(decoded)
        rows = decoded + chunked
        self._flight.append(_Launched(running, rows, sampled, prompt_tokens, cached))

    def _settle(
        self, ahead: Sequence[_Launched], tokens: list[tuple[int, int]], ended: list[Ended]
    ) -> Sequence[_Launched]:
        """
        Take in what *ahead* sampled; return the parts of it that were computed.
        """
        for index, part in enumerate(ahead):
            try:
                outcome = part.running.collect()
            except DeviceLost:
                raise
            except Exception as error:
                # Whatever was launched behind it may read what it should have written.
                lost, self._flight = [*ahead[index:], *self._flight], []
                self._fail([row for each in lost for row in each.rows], error, ended)
                return ahead[:index]
            for row, token, is_finite in zip(
                part.sampled, outcome.tokens, outcome.is_finite, strict=True
            ):
                if row.is_gone:
                    if not is_finite:
                        self.pool.forget(row.lease)
                elif ending := self._take_in(row, token, is_finite, tokens):
                    self._leave(row)
                    ended.append((row.job.id, ending, ""))
        return ahead

    def _take_in(
        self, row: _Row, token: int, is_finite: bool, tokens: list[tuple[int, int]]
    ) -> FinishReason | None:
        if not is_finite:
            self.pool.forget(row.lease)
            return FinishReason.NONFINITE
        if token in self._ends:
            return FinishReason.STOP
        tokens.append((row.job.id, token))
        row.tokens.append(token)
        self.pool.register(row.lease, row.tokens, min(row.launched, len(row.tokens)))
        return FinishReason.LENGTH if len(row.tokens) > row.last else None

    def _fail(self, rows: Sequence[_Row], error: Exception, ended: list[Ended]) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} in {where.name}: {error}"
        for row in rows:
            if not row.is_gone:
                self._leave(row)
                ended.append((row.job.id, FinishReason.ERROR, detail))
        # Nothing was written where memory was short; else nobody knows what was.
        if not isinstance(error, OutOfMemory):
            self.pool.clear()

    def _leave(self, row: _Row) -> None:
        """
        Free what a row holds.  The step in flight may still write there, but before all others.
        """
        row.is_gone = True
        del self._rows[row.job.id], self._by_slot[row.slot]
        self._prompts.pop(row.job.id, None)
        self._decoding.pop(row.job.id, None)
        self._free_slots.append(row.slot)
        self.pool.give_back(row.lease)
