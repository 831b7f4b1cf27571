"""
Who is computed in the next step.  Joins queue, batcher, pages and runner; no clock, no torch.

Requests join and leave between two steps, so a short one never waits for a long neighbour.
A step is launched before the one ahead of it is collected, so the device never waits for Python:
what a step samples is known a turn later, and a seq that has ended may be computed once in vain.
"""

import traceback
from collections import abc
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from runtime.engines.base.protocol import EngineReport, FinishReason, Submit
from runtime.engines.paged.batcher import Take
from runtime.engines.paged.block_allocator import Allocation, BlockAllocator
from runtime.engines.paged.oom_splits import StepSize, launch
from runtime.engines.paged.queue import Queue
from runtime.engines.paged.step import (
    Chunk,
    Decode,
    DeviceLost,
    Join,
    OutOfMemory,
    Running,
    Step,
    StepRunner,
)

Ended = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class Capacity:
    """
    Attributes:
        max_requests: Rows at once.
        step_tokens: Most tokens that a step computes, decodes first.  More than max_requests, or
            prompts wait while every seq decodes.
        max_wait_s: Longest that the oldest request waits for company.
    """

    max_requests: int
    step_tokens: int
    max_wait_s: float


@dataclass(slots=True, eq=False)
class Sequence:
    """
    Attributes:
        tokens: The prompt, and what is known of the answer.
        launched: Tokens at the front whose keys and values a launched step has computed.
        last: What `launched` is when its last token is sampled, which nobody computes.
    """

    request: Submit
    deadline_s: float
    slot: int
    allocation: Allocation
    tokens: list[int]
    launched: int
    last: int
    is_gone: bool = False

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.request.tokens)


@dataclass(frozen=True, slots=True)
class _Launched:
    """
    Attributes:
        sampled: The seqs of its StepOutput, in that order.
    """

    running: Running
    seqs: abc.Sequence[Sequence]
    sampled: abc.Sequence[Sequence]
    prompt_tokens: int
    cached_tokens: int


class Scheduler:
    """
    The queue and the batch of one engine.

    Attributes:
        allocator: The pages.
        oom_splits: How often a step was cut in two for want of memory.

    Args:
        stop_token_ids: Token ids that end an answer; they are not part of it.
        rng: Draws the seeds of who has none.
    """

    def __init__(
        self,
        runner: StepRunner,
        capacity: Capacity,
        stop_token_ids: Collection[int],
        allocator: BlockAllocator,
        rng: Random,
    ) -> None:
        self.allocator = allocator
        self.oom_splits = 0
        self._reported_splits = 0
        self._runner = runner
        self._capacity = capacity
        self._stop_token_ids = frozenset(stop_token_ids)
        self._rng = rng
        self._queue = Queue(allocator)
        self._refused: list[Ended] = []  # told by the next turn
        self._running: dict[int, Sequence] = {}
        self._prompts: dict[int, Sequence] = {}  # seqs that wait for a chunk, in arrival order
        self._decoding: dict[int, Sequence] = {}  # seqs that wait for a decode
        self._by_slot: dict[int, Sequence] = {}
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
        return not self._running and not self._flight

    def hold(self) -> None:
        """
        Let no more requests join, until `resume`: who runs finishes, who waits may expire.
        """
        self._is_held = True

    def resume(self) -> None:
        self._is_held = False

    def submit(self, request: Submit, now_s: float) -> None:
        pages = self.allocator.count(len(request.tokens) + request.params.max_tokens)
        if pages >= self.allocator.pages:
            why = f"it needs {pages} pages of the KV cache, which has {self.allocator.pages - 1}"
            self._refused.append((request.id, FinishReason.ERROR, why))
        else:
            self._queue.push(request, now_s)

    def cancel(self, id: int) -> None:
        """
        Forget a request; one that has already ended is none.
        """
        self._queue.pop(id)
        self._refused = [ended for ended in self._refused if ended[0] != id]
        if seq := self._running.get(id):
            self._leave(seq)

    def wait_s(self, now_s: float) -> float | None:
        """
        Return how long nothing needs doing; None: until something arrives.
        """
        if self._running or self._flight or self._refused:
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

    def turn(self, now_s: float) -> EngineReport:
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
        for seqs, error in failures:
            self._fail(seqs, error, ended)
        self._steps += len(settled)
        report = EngineReport(
            tokens,
            ended,
            running=len(self._running),
            waiting=len(self._queue),
            batch=len({seq.request.id for part in settled for seq in part.seqs}),
            steps=self._steps,
            prompt_tokens=sum(part.prompt_tokens for part in settled),
            cached_tokens=sum(part.cached_tokens for part in settled),
            pages_used=self.allocator.used,
            pages=self.allocator.pages - 1,
        )
        # Not in a beat, for most of those are not sent.
        if (splits := self.oom_splits - self._reported_splits) and not report.is_beat:
            self._reported_splits = self.oom_splits
            report = replace(report, oom_splits=splits)
        return report

    def _expire(self, now_s: float, ended: list[Ended]) -> None:
        for id in self._queue.expire(now_s):
            ended.append((id, FinishReason.EXPIRED, "it was still waiting"))
        for seq in [seq for seq in self._running.values() if seq.deadline_s <= now_s]:
            self._leave(seq)
            ended.append(
                (
                    seq.request.id,
                    FinishReason.EXPIRED,
                    f"{seq.made} of {seq.request.params.max_tokens} tokens",
                )
            )

    def _plan(self, now_s: float) -> Step:
        """
        Every decode, and of the prompts what fits behind them.
        """
        decoding = islice(self._decoding.values(), self._size.tokens)
        decodes = tuple(Decode(seq.slot, seq.launched) for seq in decoding)
        room = self._size.tokens - len(decodes)
        asked = sum(len(seq.tokens) - seq.launched for seq in self._prompts.values())
        joins = tuple(self._admit(now_s, room - asked))
        chunks = []
        for seq in self._prompts.values():
            if room <= 0:
                break
            part = seq.tokens[seq.launched : seq.launched + room]
            is_last = seq.launched + len(part) == len(seq.tokens)
            chunks.append(Chunk(seq.slot, seq.launched, part, is_last))
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
                seq = self._join(pending.id)
                room -= len(seq.tokens) - seq.launched
                params = seq.request.params
                if params.seed is None:
                    params = replace(params, seed=self._rng.getrandbits(63))
                joins.append(Join(seq.slot, seq.allocation.pages, params))
        return joins

    def _take(self, now_s: float) -> Take:
        max_wait_s = 0.0 if self._running else self._capacity.max_wait_s
        return self._queue.take(now_s, len(self._free_slots), max_wait_s)

    def _join(self, id: int) -> Sequence:
        waiting = self._queue.pop(id)
        assert waiting is not None, id
        request, block_hashes = waiting.request, self._queue.block_hashes(waiting)
        allocation = self.allocator.allocate(block_hashes, waiting.pending.tokens)
        seq = Sequence(
            request,
            waiting.pending.deadline_s,
            slot=self._free_slots.pop(),
            allocation=allocation,
            tokens=list(request.tokens),
            launched=allocation.cached,
            last=len(request.tokens) + request.params.max_tokens - 1,
        )
        self._running[request.id] = self._prompts[request.id] = self._by_slot[seq.slot] = seq
        return seq

    def _launch(self, step: Step) -> list[tuple[list[Sequence], Exception]]:
        """
        Launch *step*; return the seqs that could not be, and why.
        """
        launches = launch(self._runner, step)
        for part, running in launches.parts:
            self._commit(part, running)
        self.oom_splits += launches.splits
        self._size.learn(launches)
        return [([self._by_slot[s] for s in slots], why) for slots, why in launches.failures]

    def _commit(self, part: Step, running: Running) -> None:
        decoded = [self._by_slot[decode.slot] for decode in part.decodes]
        is_partial = len(decoded) < len(self._decoding)
        for seq in decoded:
            seq.launched += 1
            if is_partial or seq.launched == seq.last:
                del self._decoding[seq.request.id]
            if is_partial and seq.launched < seq.last:
                self._decoding[seq.request.id] = seq  # behind those that were not computed
        chunked = [self._by_slot[chunk.slot] for chunk in part.chunks]
        sampled = decoded.copy()
        for seq, chunk in zip(chunked, part.chunks, strict=True):
            seq.launched += len(chunk.tokens)
            self.allocator.register(seq.allocation, seq.tokens, seq.launched)
            if chunk.is_last:
                sampled.append(seq)
                del self._prompts[seq.request.id]
                if seq.launched < seq.last:
                    self._decoding[seq.request.id] = seq
        cached = sum(self._by_slot[join.slot].allocation.cached for join in part.joins)
        prompt_tokens = part.tokens - len(decoded)
        seqs = decoded + chunked
        self._flight.append(_Launched(running, seqs, sampled, prompt_tokens, cached))

    def _settle(
        self, ahead: abc.Sequence[_Launched], tokens: list[tuple[int, int]], ended: list[Ended]
    ) -> abc.Sequence[_Launched]:
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
                self._fail([seq for each in lost for seq in each.seqs], error, ended)
                return ahead[:index]
            for seq, token, is_finite in zip(
                part.sampled, outcome.tokens, outcome.is_finite, strict=True
            ):
                if seq.is_gone:
                    if not is_finite:
                        self.allocator.forget(seq.allocation)
                elif ending := self._take_in(seq, token, is_finite, tokens):
                    self._leave(seq)
                    ended.append((seq.request.id, ending, ""))
        return ahead

    def _take_in(
        self, seq: Sequence, token: int, is_finite: bool, tokens: list[tuple[int, int]]
    ) -> FinishReason | None:
        if not is_finite:
            self.allocator.forget(seq.allocation)
            return FinishReason.NONFINITE
        if token in self._stop_token_ids:
            return FinishReason.STOP
        tokens.append((seq.request.id, token))
        seq.tokens.append(token)
        self.allocator.register(seq.allocation, seq.tokens, min(seq.launched, len(seq.tokens)))
        return FinishReason.LENGTH if len(seq.tokens) > seq.last else None

    def _fail(self, seqs: abc.Sequence[Sequence], error: Exception, ended: list[Ended]) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} in {where.name}: {error}"
        for seq in seqs:
            if not seq.is_gone:
                self._leave(seq)
                ended.append((seq.request.id, FinishReason.ERROR, detail))
        # Nothing was written where memory was short; else nobody knows what was.
        if not isinstance(error, OutOfMemory):
            self.allocator.clear()

    def _leave(self, seq: Sequence) -> None:
        """
        Free what a seq holds.  The step in flight may still write there, but before all others.
        """
        seq.is_gone = True
        del self._running[seq.request.id], self._by_slot[seq.slot]
        self._prompts.pop(seq.request.id, None)
        self._decoding.pop(seq.request.id, None)
        self._free_slots.append(seq.slot)
        self.allocator.free(seq.allocation)
