"""
Decides which requests the next step computes.  No clock, no torch.

Uses the queue, the batcher, the block allocator and the runner.

Requests join and leave between two steps, so a short request never waits for a long one.
A step is launched before the one ahead of it is collected, so the device never waits for Python:
the tokens of a step are known one turn later, and a finished sequence may be computed once more.
Not on a CPU, where a launch computes: its tokens would wait for a step of other requests.
"""

import traceback
from collections import abc
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from random import Random

from runtime.engines.base.protocol import EngineReport, FinishReason, Submit
from runtime.engines.base.sampling import SamplingParams, TokenLogprobs
from runtime.engines.paged.batcher import Take
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.fairness import ANSWER_COST, PROMPT_COST, FairShares, Rank
from runtime.engines.paged.grammars import POLL_S, Grammars
from runtime.engines.paged.oom_splits import StepSize, launch
from runtime.engines.paged.queue import Queue
from runtime.engines.paged.sequence import Ended, LaunchedStep, News, Sequence
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
from runtime.structured import GrammarError
from runtime.structured.answer import AnswerState


@dataclass(frozen=True, slots=True)
class Capacity:
    """
    Attributes:
        max_requests: Most sequences of a step.
        step_tokens: Most tokens that a step computes, decodes first.  More than max_requests, or
            prompts wait while every sequence decodes.
        max_wait_s: Longest wait of the oldest request for others to share its batch.
    """

    max_requests: int
    step_tokens: int
    max_wait_s: float


class Scheduler:
    """
    The queue and the batch of one engine.

    Attributes:
        allocator: Of the pages of the KV cache.
        oom_splits: Number of times that a step ran out of memory and was split.
        shares: What each key got and holds.

    Args:
        stop_token_ids: Token ids that end an answer; they are not part of it.
        rng: Draws a seed for each request without one.
        grammars: None for an engine without grammars.
        is_synchronous: As of the LoadedModel.
    """

    def __init__(
        self,
        runner: StepRunner,
        capacity: Capacity,
        stop_token_ids: Collection[int],
        allocator: BlockAllocator,
        rng: Random,
        grammars: Grammars | None = None,
        *,
        is_synchronous: bool = False,
    ) -> None:
        self.allocator = allocator
        self.oom_splits = 0
        self._reported_splits = 0
        self._runner, self._is_synchronous = runner, is_synchronous
        self._capacity = capacity
        self._stop_token_ids = frozenset(stop_token_ids)
        self._rng = rng
        self.shares = FairShares(capacity.max_requests)
        self._queue = Queue(allocator, self.shares)
        if grammars is None:
            grammars = Grammars(None, "this engine has no grammars")
        self._grammars = grammars
        self._answers: dict[int, AnswerState] = {}  # of requests in the queue
        self._refused: list[Ended] = []  # reported by the next turn
        self._running: dict[int, Sequence] = {}
        self._prompts: dict[int, Sequence] = {}  # waiting for a chunk, in arrival order
        self._decoding: dict[int, Sequence] = {}  # waiting for a decode
        self._by_slot: dict[int, Sequence] = {}
        self._free_slots = list(range(capacity.max_requests - 1, -1, -1))
        self._flight: list[LaunchedStep] = []  # one turn's step; more where it was split
        self._size = StepSize(capacity.step_tokens)
        self._steps = 0
        self._is_held = False

    @property
    def is_idle(self) -> bool:
        return self.is_quiet and not self._queue and not self._refused and not self._grammars

    @property
    def is_quiet(self) -> bool:
        """
        True if no step is running, cancelled requests included.
        """
        return not self._running and not self._flight

    @property
    def step_tokens(self) -> int:
        """
        Most tokens of a step.
        """
        return self._capacity.step_tokens

    def hold(self) -> None:
        """
        Admit no more requests until `resume`: running ones finish, waiting ones may expire.
        """
        self._is_held = True

    def resume(self) -> None:
        self._is_held = False

    def submit(self, request: Submit, now_s: float) -> None:
        pages = self.allocator.count(len(request.tokens) + request.params.max_tokens)
        if pages >= self.allocator.pages:
            why = f"it needs {pages} pages of the KV cache, which has {self.allocator.pages - 1}"
            self._refused.append((request.id, FinishReason.ERROR, why))
        elif request.params.grammar is not None:
            self._grammars.start(request, now_s)
        else:
            self._push(request, now_s)

    def _push(self, request: Submit, now_s: float) -> None:
        first = request.prefix_of
        # After its prompt is computed, the cache has it: nothing is left to wait for.
        is_held = first is not None and (
            first in self._prompts or self._queue.has(first) or self._grammars.has(first)
        )
        self._queue.push(request, now_s, is_held=is_held)

    def cancel(self, id: int) -> None:
        """
        Drop a request; no effect on a finished one.
        """
        was_compiled = self._grammars.has(id)
        self._grammars.cancel(id)
        if self._queue.pop(id) or was_compiled:
            self._queue.release(id)
        self._answers.pop(id, None)
        self._refused = [ended for ended in self._refused if ended[0] != id]
        if seq := self._running.get(id):
            self._leave(seq)

    def wait_s(self, now_s: float) -> float | None:
        """
        Return the seconds until a turn has work; None: until a message arrives.
        """
        if self._running or self._flight or self._refused:
            return 0.0
        if self._grammars:
            return POLL_S
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
        Expire late requests, launch the next step, report on the one before it; on a CPU on the
        step itself.
        """
        self._queue_compiled()
        news = News(ended=self._refused)
        self._refused = []
        self._expire(now_s, news.ended)
        step = self._plan(now_s)
        ahead, self._flight = self._flight, []
        failures = self._launch(step) if step.tokens else []
        settled = self._settle(ahead, news)
        # After the earlier step, which may hold the last token of an answer.
        for seqs, error in failures:
            self._fail(seqs, error, news.ended)
        self._mask(news.ended)
        if self._is_synchronous:  # nothing was ahead
            ahead, self._flight = self._flight, []
            settled = self._settle(ahead, news)
        self._steps += len(settled)
        cached = [pair for part in settled for pair in part.cached]
        report = EngineReport(
            news.tokens,
            news.ended,
            running=len(self._running),
            waiting=len(self._queue) + len(self._grammars),
            batch=len({seq.request.id for part in settled for seq in part.seqs}),
            steps=self._steps,
            prompt_tokens=sum(part.prompt_tokens for part in settled),
            cached_tokens=sum(tokens for _, tokens in cached),
            pages_used=self.allocator.used,
            pages=self.allocator.pages - 1,
            cached=tuple(cached),
            logprobs=tuple(news.logprobs),
            prompt_logprobs=tuple(news.prompt_logprobs),
        )
        # Not in a beat: most beats are not sent.
        if (splits := self.oom_splits - self._reported_splits) and not report.is_beat:
            self._reported_splits = self.oom_splits
            report = replace(report, oom_splits=splits)
        return report

    def _queue_compiled(self) -> None:
        """
        Queue the requests whose grammars are compiled.
        """
        for done in self._grammars.take_done():
            id = done.request.id
            if isinstance(done.outcome, GrammarError):
                self._refused.append((id, FinishReason.GRAMMAR, str(done.outcome)))
                self._queue.release(id)
            else:
                self._answers[id] = done.outcome
                self._push(done.request, done.arrived_s)

    def _expire(self, now_s: float, ended: list[Ended]) -> None:
        for id in self._queue.expire(now_s):
            self._queue.release(id)
            self._answers.pop(id, None)
            ended.append((id, FinishReason.EXPIRED, "the request was still queued"))
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
        Return a step of all decodes, and of the chunks of prompts that fit behind them.
        """
        decoding = islice(self._decoding.values(), self._size.tokens)
        decodes = tuple(Decode(seq.slot, seq.launched) for seq in decoding)
        room = self._size.tokens - len(decodes)
        if self._is_ordered:
            joins, prompts = self._admit_in_turn(now_s, room)
        else:
            asked = sum(len(seq.tokens) - seq.launched for seq in self._prompts.values())
            joins, prompts = self._admit(now_s, room - asked), list(self._prompts.values())
        chunks = []
        for seq in prompts:
            if room <= 0:
                break
            part = seq.tokens[seq.launched : seq.launched + room]
            is_last = seq.launched + len(part) == len(seq.tokens)
            targets, top = self._targets(seq, len(part))
            chunks.append(Chunk(seq.slot, seq.launched, part, is_last, targets, top))
            room -= len(part)
        return Step(tuple(joins), decodes, tuple(chunks))

    @property
    def _is_ordered(self) -> bool:
        """
        Whether prompts are computed in another order than that of their arrival.
        """
        if self.shares.is_shared or self._queue.has_priorities:
            return True
        return any(seq.request.priority for seq in self._prompts.values())

    def _targets(self, seq: Sequence, count: int) -> tuple[abc.Sequence[int], int]:
        """
        Return `Chunk.targets` and `Chunk.top` of the next *count* tokens of a prompt.
        """
        top = seq.request.params.prompt_logprobs
        if top is None:
            return (), 0
        return seq.tokens[seq.launched + 1 : seq.launched + 1 + count], top

    def _admit(self, now_s: float, room: int) -> list[Join]:
        """
        Admit queued requests while the step has token budget; each is computed in this step.
        """
        joins: list[Join] = []
        while room > 0 and not self._is_held and (batch := self._take(now_s).batch):
            for pending in batch:
                if room <= 0:
                    break
                seq = self._join(pending.id)
                room -= len(seq.tokens) - seq.launched
                joins.append(self._make_join(seq))
        return joins

    def _admit_in_turn(self, now_s: float, room: int) -> tuple[list[Join], list[Sequence]]:
        """
        Admit queued requests as `_admit` does, ahead of prompts of keys that got more, or of
        a higher priority number.

        Returns:
            The joins, and all prompts in the order in which the step computes them.
        """
        ranks: dict[tuple[str, int], Rank] = {}  # of the beginning of the step

        def rank(request: Submit) -> tuple[Rank, str, int]:
            share, priority = request.share, request.priority
            # Of the same rank, keys are told apart before a client's own numbers are compared.
            own = ranks.setdefault((share.key, priority), self.shares.rank(share, priority))
            return own, share.key, priority

        # Of one key and priority: in arrival order.
        prompts = sorted(self._prompts.values(), key=lambda seq: rank(seq.request))
        joins: list[Join] = []
        least = 0  # what joins must not be pushed out of the step by what joins later
        while not self._is_held and (batch := self._take(now_s).batch):
            own = rank(self._queue.request(batch[0].id))
            place = max(least, sum(rank(seq.request) <= own for seq in prompts))
            if room <= sum(len(seq.tokens) - seq.launched for seq in prompts[:place]):
                break
            seq = self._join(batch[0].id)
            prompts.insert(place, seq)
            least = place + 1
            joins.append(self._make_join(seq))
        return joins, prompts

    def _make_join(self, seq: Sequence) -> Join:
        params = seq.request.params
        if params.seed is None:
            params = replace(params, seed=self._rng.getrandbits(63))
        prompt = seq.request.tokens
        join = Join(seq.slot, seq.allocation.pages, params)
        if seq.answer is not None:
            join = replace(join, params=replace(params, grammar=None), awaits_masks=True)
        if params.repetition_penalty != 1:
            join = replace(join, prompt=prompt)
        if params.min_tokens and seq.stop_token_ids:
            stops_from = len(prompt) - 1 + params.min_tokens
            stop_token_ids = tuple(seq.stop_token_ids)
            join = replace(join, stop_token_ids=stop_token_ids, stops_from=stops_from)
        return join

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
            stop_token_ids=self._stops_of(request.params),
            answer=self._answers.pop(id, None),
        )
        self.shares.join(request.share, len(allocation.pages))
        self._running[request.id] = self._prompts[request.id] = self._by_slot[seq.slot] = seq
        return seq

    def _stops_of(self, params: SamplingParams) -> frozenset[int]:
        stops = frozenset() if params.ignore_eos else self._stop_token_ids
        return stops.union(params.stop_token_ids) if params.stop_token_ids else stops

    def _launch(self, step: Step) -> list[tuple[list[Sequence], Exception]]:
        """
        Launch *step*; return the sequences that failed, and why.
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
            self.shares.charge(seq.request.share, ANSWER_COST)
            seq.launched += 1
            if is_partial or seq.launched == seq.last:
                del self._decoding[seq.request.id]
            if is_partial and seq.launched < seq.last:
                self._decoding[seq.request.id] = seq  # behind those that wait longer
        chunked = [self._by_slot[chunk.slot] for chunk in part.chunks]
        sampled = decoded.copy()
        for seq, chunk in zip(chunked, part.chunks, strict=True):
            seq.launched += len(chunk.tokens)
            self.shares.charge(seq.request.share, PROMPT_COST * len(chunk.tokens))
            self.allocator.register(seq.allocation, seq.tokens, seq.launched)
            if chunk.is_last:
                sampled.append(seq)
                del self._prompts[seq.request.id]
                self._queue.release(seq.request.id)
                if seq.launched < seq.last:
                    self._decoding[seq.request.id] = seq
        joined = [self._by_slot[join.slot] for join in part.joins]
        cached = [(s.request.id, s.allocation.cached) for s in joined if s.allocation.cached]
        prompt_tokens = part.tokens - len(decoded)
        seqs = decoded + chunked
        self._flight.append(LaunchedStep(running, seqs, sampled, chunked, prompt_tokens, cached))

    def _settle(self, ahead: abc.Sequence[LaunchedStep], news: News) -> abc.Sequence[LaunchedStep]:
        """
        Process the tokens of *ahead*; return the parts of it that were computed.
        """
        for index, part in enumerate(ahead):
            try:
                outcome = part.running.collect()
            except DeviceLost:
                raise
            except Exception as error:
                # Steps launched after it may read what it should have written.
                lost, self._flight = [*ahead[index:], *self._flight], []
                self._fail([seq for each in lost for seq in each.seqs], error, news.ended)
                return ahead[:index]
            for index, scores in outcome.prompt_logprobs.items():
                self._take_in_scores(part.chunked[index], scores, news)
            for index, (seq, token, is_finite) in enumerate(
                zip(part.sampled, outcome.tokens, outcome.is_finite, strict=True)
            ):
                if seq.is_gone:
                    if not is_finite:
                        self.allocator.forget(seq.allocation)
                    continue
                before = len(news.tokens)
                ending = self._take_in(seq, token, is_finite, news.tokens)
                if len(news.tokens) > before and (found := outcome.logprobs.get(index)):
                    news.logprobs.append((seq.request.id, found.logprob, found.top))
                if ending:
                    self._leave(seq)
                    news.ended.append((seq.request.id, ending, ""))
        return ahead

    def _take_in_scores(
        self, seq: Sequence, scores: abc.Sequence[TokenLogprobs], news: News
    ) -> None:
        """
        Report the log probabilities of some of a prompt's tokens; end *seq* if one is no number.
        """
        if seq.is_gone:
            return
        if all(isfinite(each.logprob) for each in scores):
            found = [(each.logprob, each.top) for each in scores]
            news.prompt_logprobs.append((seq.request.id, found))
            return
        self.allocator.forget(seq.allocation)
        self._leave(seq)
        news.ended.append((seq.request.id, FinishReason.NONFINITE, ""))

    def _take_in(
        self, seq: Sequence, token: int, is_finite: bool, tokens: list[tuple[int, int]]
    ) -> FinishReason | None:
        if not is_finite:
            self.allocator.forget(seq.allocation)
            return FinishReason.NONFINITE
        if not seq.request.params.max_tokens:
            return FinishReason.LENGTH
        if token in seq.stop_token_ids:
            return FinishReason.STOP
        tokens.append((seq.request.id, token))
        seq.tokens.append(token)
        self.allocator.register(seq.allocation, seq.tokens, min(seq.launched, len(seq.tokens)))
        if len(seq.tokens) <= seq.last:
            return None
        return FinishReason.STOP if self._is_complete(seq) else FinishReason.LENGTH

    def _is_complete(self, seq: Sequence) -> bool:
        """
        Return whether the last token that *seq* may have completes what its grammar asks for.
        """
        if seq.answer is None:
            return False
        try:
            return self._accept(seq, seq.answer)
        except GrammarError:
            return False

    def _accept(self, seq: Sequence, answer: AnswerState) -> bool:
        """
        Have the grammar of *seq* see its new tokens; return whether its answer is complete.
        """
        new = seq.tokens[len(seq.request.tokens) + answer.accepted :]
        return self._grammars.accept(answer, new)

    def _mask(self, ended: list[Ended]) -> None:
        """
        Give the steps in flight the masks of their rows: the tokens before them are known now.

        Each step gets them, whatever grammars do: see `Grammars.masks`.
        """
        for index, part in enumerate(self._flight):
            if not part.running.awaits_masks:
                continue
            try:
                part.running.mask(self._masks(part.sampled, ended))
            except DeviceLost:
                raise
            except Exception as error:
                lost, self._flight = self._flight[index:], self._flight[:index]
                self._fail([seq for each in lost for seq in each.seqs], error, ended)
                return

    def _masks(
        self, seqs: abc.Sequence[Sequence], ended: list[Ended]
    ) -> abc.Sequence[tuple[int, bytes]]:
        """
        Return the masks of *seqs* by slot; end those whose answers are complete, or invalid.
        """

        def end(seq: Sequence, reason: FinishReason, detail: str = "") -> None:
            self._leave(seq)
            ended.append((seq.request.id, reason, detail))

        going: list[tuple[Sequence, AnswerState]] = []
        for seq in seqs:
            if seq.answer is None or seq.is_gone:
                continue
            try:
                is_complete = self._accept(seq, seq.answer)
            except GrammarError as error:
                end(seq, FinishReason.GRAMMAR, str(error))
                continue
            if is_complete:
                end(seq, FinishReason.STOP)
            else:
                going.append((seq, seq.answer))
        masks = []
        found = self._grammars.masks([answer for _, answer in going])
        for (seq, _), mask in zip(going, found, strict=True):
            if isinstance(mask, GrammarError):
                end(seq, FinishReason.GRAMMAR, str(mask))
            elif not mask.is_empty:
                masks.append((seq.slot, mask.words))
            elif mask.may_end:  # the model has no stop token
                end(seq, FinishReason.STOP)
            else:
                end(seq, FinishReason.GRAMMAR, "it allows no token of this model")
        return masks

    def _fail(self, seqs: abc.Sequence[Sequence], error: Exception, ended: list[Ended]) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} in {where.name}: {error}"
        for seq in seqs:
            if not seq.is_gone:
                self._leave(seq)
                ended.append((seq.request.id, FinishReason.ERROR, detail))
        # Out of memory: nothing was written.  Any other error: the pages' contents are unknown.
        if not isinstance(error, OutOfMemory):
            self.allocator.clear()

    def _leave(self, seq: Sequence) -> None:
        """
        Free the slot and the pages of *seq*.  A step in flight may still write them, before any
        later step does.
        """
        seq.is_gone = True
        del self._running[seq.request.id], self._by_slot[seq.slot]
        if self._prompts.pop(seq.request.id, None):
            self._queue.release(seq.request.id)
        self._decoding.pop(seq.request.id, None)
        self._free_slots.append(seq.slot)
        self.shares.leave(seq.request.share, len(seq.allocation.pages))
        self.allocator.free(seq.allocation)
