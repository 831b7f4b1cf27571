"""
Computes steps with one model over a paged cache.

A small step is one CUDA graph, captured once for each size.  It computes from the newest tokens to
the next ones; the CPU only uploads tokens, slots and positions.  Tokens of short prompts are rows
of it too: each attends to all tokens before it, those of the same step included.  A large step is
launched kernel by kernel.  Only `collect` waits for the device, for the sampled tokens.

What a row asks of its logits beyond temperature and top_p is no part of a graph: `processing` does
it behind the step, for these rows alone.  A row that awaits a mask is one of them: its step is
launched without it, and `deferred` samples it when the mask is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from runtime.engines.paged.deferred import DeferredStep
from runtime.engines.paged.processing import Asked, LogitsProcessing, logprobs_of
from runtime.engines.paged.prompt_scores import (
    ScoredChunks,
    prompt_logprobs,
    score_chunks,
    scored_chunks,
)
from runtime.engines.paged.step import DeviceLost, Join, OutOfMemory, Step, StepOutput
from runtime.engines.paged.transfers import Transfers, unowned, whole
from runtime.kernels import reference
from runtime.kernels.attention.chunked import Prefill, Span
from runtime.kernels.attention.dispatch import PagedAttend
from runtime.kernels.cache import PagedCache, make_cache
from runtime.kernels.ops import ops_for
from runtime.models.decoder import Decoder

# Tokens of a step.
GRAPH_SIZES = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512),
    *(640, 768, 1024),
)
# Most tokens that a graph's prompt tokens read from the cache, summed.
GRAPH_READS = 600_000

_Prompts = tuple[ScoredChunks, Tensor]


@dataclass(frozen=True, slots=True)
class _Running:
    """
    A launched step.

    Attributes:
        result: (2, n) int32 in host memory: tokens, and whether they are finite.
        done: Recorded behind the copies to *result* and *scores*; None on a CPU.
        asked, scores: For `logprobs_of`; None if no row asked for log probabilities.
        prompts: For `prompt_logprobs`; None if no chunk asked for them.
    """

    result: Tensor
    done: "torch.cuda.Event | None"
    asked: Asked | None = None
    scores: Tensor | None = None
    prompts: _Prompts | None = None

    @property
    def awaits_masks(self) -> bool:
        return False

    def mask(self, masks: Sequence[tuple[int, bytes]]) -> None:
        raise AssertionError("no row of this step awaits a mask")

    def collect(self) -> StepOutput:
        if self.done is not None:
            try:
                self.done.synchronize()
            except torch.AcceleratorError as error:
                raise DeviceLost(str(error)) from error
        tokens, finite = self.result.tolist()
        is_finite = [bool(flag) for flag in finite]
        output = StepOutput(tokens, is_finite)
        if self.asked is not None and self.scores is not None:
            output = replace(output, logprobs=logprobs_of(self.asked, self.scores))
        if self.prompts is not None:
            output = replace(output, prompt_logprobs=prompt_logprobs(*self.prompts))
        return output


class PagedRunner:
    """
    See `step.StepRunner`.

    Args:
        slots: Most rows of a step.
        pages: Pages of the cache, page 0 included, which is where padding writes.
        row_pages: Pages of the longest row.
        kv_dtype: Of the cache; None for the model's.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        slots: int,
        pages: int,
        page_tokens: int,
        row_pages: int,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._slots = model, slots
        device = self._device = model.device
        model.ops = ops_for(device)
        config = model.config
        heads, kv_heads = model.shard.heads(config.heads), model.shard.kv_heads(config.kv_heads)
        self._group = heads // kv_heads
        self.cache: PagedCache = make_cache(
            layers=config.layers,
            pages=pages,
            kv_heads=kv_heads,
            page_tokens=page_tokens,
            head_dim=config.head_dim,
            slots=slots + 1,  # the last one is the padding's: its pages are all page 0
            row_pages=row_pages,
            dtype=kv_dtype or model.dtype,
            device=device,
        )
        self._workspace = None
        if device.type == "cuda":
            from runtime.kernels.attention.decode import Workspace

            most = max(slots, GRAPH_SIZES[-1])
            self._workspace = Workspace(most, kv_heads, self._group, config.head_dim, device)
        self._pdl = getattr(model.ops, "pdl", False)
        # Of each slot:
        self._newest = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self._temperatures = torch.zeros(slots + 1, device=device)
        self._top_ps = torch.ones(slots + 1, device=device)
        self._seeds = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self._transfers = Transfers(device)
        self._processing = LogitsProcessing(
            slots, config.vocabulary, self._temperatures, self._transfers
        )
        self._awaiting: set[int] = set()  # slots whose tokens await masks
        self._deferred: DeferredStep | None = None  # the newest, which may wait for its masks
        self._graphs: list[_Graph] = []  # by size

    @torch.inference_mode()
    def capture(self) -> None:
        """
        Capture the CUDA graphs; no effect on a CPU.  Call it once, when the weights are in place.
        """
        if self._device.type != "cuda":
            return
        pool = None
        # One stream for all: cuBLAS keeps a workspace for each.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for size in reversed(GRAPH_SIZES):
            made = self._graph(size)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._fill(made)  # compiles, and lets cuBLAS allocate
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(made.graph, pool=pool):
                logits = self._fill(made)
            pool = pool or made.graph.pool()
            self._graphs.insert(0, replace(made, logits=unowned(logits)))
            del logits  # the next graph shares its memory
        self._processing.warm_up()

    @torch.inference_mode()
    def launch(self, step: Step) -> _Running | DeferredStep:
        newest: Tensor | None = None
        try:
            if self._deferred is not None:
                self._deferred.keep()  # no effect once it has its masks
                self._deferred = None
            if step.joins:
                self._join(step.joins)
            graph = self._choose(step)
            asked = self._processing.select(step)
            if asked is not None:
                newest = self._newest.clone()
            prompts = None
            if graph:
                logits, result = self._replay(graph, step)
            else:
                logits, result, prompts = self._launch(step)
            if self._awaiting.isdisjoint(step.sampled):
                return self._finish(logits, result, asked, prompts)
            finish = partial(self._finish_deferred, prompts=prompts)
            self._deferred = DeferredStep(step, logits, result, finish)
            return self._deferred
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            # A repeated step reads the same tokens, and writes the same values again.
            if newest is not None:
                self._newest.copy_(newest)
            raise OutOfMemory(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error

    def _choose(self, step: Step) -> "_Graph | None":
        if any(chunk.targets for chunk in step.chunks):
            return None
        size = step.tokens
        reads = sum(
            len(chunk.tokens) * (2 * chunk.start + len(chunk.tokens)) // 2 for chunk in step.chunks
        )
        if reads > GRAPH_READS:
            return None
        return next((graph for graph in self._graphs if graph.size >= size), None)

    def _join(self, joins: Sequence[Join]) -> None:
        width = self.cache.table.shape[1]
        rows = [[*join.pages, *[0] * (width - len(join.pages))] for join in joins]
        upload = self._transfers.upload
        slots = upload([join.slot for join in joins]).long()
        self.cache.table.index_copy_(0, slots, upload(rows))
        self._seeds.index_copy_(0, slots, upload([_signed(join.params.seed) for join in joins]))
        for target, values in (
            (self._temperatures, [join.params.temperature for join in joins]),
            (self._top_ps, [join.params.top_p for join in joins]),
        ):
            target.index_copy_(0, slots, upload(values, torch.float32))
        self._processing.join(joins)
        for join in joins:
            (self._awaiting.add if join.awaits_masks else self._awaiting.discard)(join.slot)

    def _graph(self, size: int) -> "_Graph":
        picked = min(size, self._slots)
        numbers = 3 * whole(size) + 2 * whole(picked)
        inputs = torch.zeros(numbers, dtype=torch.int32, device=self._device)
        room = torch.zeros((2, whole(picked)), dtype=torch.int32, device=self._device)
        graph = _Graph(size, picked, inputs, room[:, :picked], torch.cuda.CUDAGraph())
        inputs.copy_(self._transfers.upload(graph.pad(_Flat([], [], [], [], [], []), self._slots)))
        return graph

    def _fill(self, graph: "_Graph") -> Tensor:
        """
        Compute from the newest tokens to the next ones, the body of a graph; return the logits.
        """
        given, slots, positions, rows, targets = graph.views()
        tokens = torch.where(given < 0, self._newest.index_select(0, slots), given)
        attend = PagedAttend(
            self.cache, slots, positions, graph.size, None, self._workspace, pdl=self._pdl
        )
        sampled = positions.index_select(0, rows)
        logits: Tensor = self._model(tokens, positions, attend, rows)
        self._sample(logits, targets, sampled, graph.outputs)
        return logits

    def _replay(self, graph: "_Graph", step: Step) -> tuple[Tensor, Tensor]:
        """
        Return the logits and the result of *step*: see `LogitsProcessing.run`.
        """
        graph.inputs.copy_(self._transfers.upload(graph.pad(_flatten(step), self._slots)))
        graph.graph.replay()
        assert graph.logits is not None, "captured"
        return graph.logits, graph.outputs[:, : len(step.sampled)]

    def _launch(self, step: Step) -> tuple[Tensor, Tensor, _Prompts | None]:
        """
        As `_replay`, kernel by kernel; also return the scores of prompts, if some ask for them.
        """
        flat = _flatten(step)
        tokens, slots, positions = self._transfers.rows(flat.tokens, flat.slots, flat.positions)
        decodes = len(step.decodes)
        if decodes:
            tokens[:decodes] = self._newest.index_select(0, slots[:decodes])
        prefill = self._prefill(flat.spans) if flat.spans else None
        attend = PagedAttend(
            self.cache, slots, positions, decodes, prefill, self._workspace, pdl=self._pdl
        )
        rows, targets = self._transfers.rows(flat.rows, flat.targets)
        scored = scored_chunks(step, flat.spans)
        if scored is None:
            logits, prompts = self._model(tokens, positions, attend, rows), None
        else:
            both = torch.cat((rows, self._transfers.upload(scored.rows)))
            hidden = self._model.hidden(tokens, positions, attend, both)
            picked, prompt = hidden[: len(rows)], hidden[len(rows) :]
            prompts = scored, score_chunks(scored, prompt, self._model.logits, self._transfers)
            logits = self._model.logits(picked)
        room = torch.empty((2, whole(len(rows))), dtype=torch.int32, device=self._device)
        result = room[:, : len(rows)]
        self._sample(logits, targets, positions.index_select(0, rows), result)
        return logits, result, prompts

    @torch.inference_mode()
    def _finish_deferred(
        self, step: Step, logits: Tensor, result: Tensor, prompts: _Prompts | None
    ) -> _Running:
        try:
            return self._finish(logits, result, self._processing.select(step), prompts)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error

    def _finish(
        self, logits: Tensor, result: Tensor, asked: Asked | None, prompts: _Prompts | None
    ) -> _Running:
        """
        Process the rows that ask for it; start the download.

        Args:
            logits, result: See `LogitsProcessing.run`.
        """
        scores = None
        if asked is not None:
            scores = self._processing.run(asked, logits, result, self._sample)
        return self._download(result, asked, scores, prompts)

    def _prefill(self, spans: Sequence[Span]) -> Prefill:
        # The kernel computes products in tf32 at best, so fp32 uses the reference.
        is_fused = self._workspace is not None and self._model.dtype != torch.float32
        return Prefill(spans, self.cache, group=self._group, is_fused=is_fused)

    def _sample(self, logits: Tensor, slots: Tensor, positions: Tensor, result: Tensor) -> None:
        temperatures, top_ps, seeds = self._temperatures, self._top_ps, self._seeds
        if self._workspace is not None:
            from runtime.kernels import sampling

            sampling.sample(
                logits,
                slots,
                temperatures,
                top_ps,
                seeds,
                positions,
                self._newest,
                result[0],
                result[1],
                pdl=self._pdl,
            )
            return
        if not logits.shape[0]:
            return
        tokens, finite = reference.sample(
            logits,
            temperatures.index_select(0, slots),
            top_ps.index_select(0, slots),
            seeds.index_select(0, slots),
            positions,
        )
        result[0], result[1] = tokens, finite
        self._newest.index_copy_(0, slots.long(), tokens.int())

    def _download(
        self,
        result: Tensor,
        asked: Asked | None,
        scores: Tensor | None,
        prompts: _Prompts | None,
    ) -> _Running:
        host = self._transfers.download(result)
        host_scores = None if scores is None else self._transfers.download(scores)
        if prompts is not None:
            prompts = prompts[0], self._transfers.download(prompts[1])
        if self._device.type != "cuda":
            return _Running(host, None, asked, host_scores, prompts)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return _Running(host, done, asked, host_scores, prompts)


@dataclass(frozen=True, slots=True)
class _Flat:
    """
    A step as one flat batch: decodes first, longest row first, because attention starts with
    what takes longest.

    Attributes:
        tokens: -1 for the newest token of the slot, which only the device knows.
        rows, targets: Tokens after which one is sampled, and the slots that get it.
    """

    tokens: list[int]
    slots: list[int]
    positions: list[int]
    spans: list[Span]
    rows: list[int]
    targets: list[int]


@dataclass(frozen=True, slots=True)
class _Graph:
    """
    Attributes:
        size, picked: Tokens, and those after which one is sampled.
        inputs: int32, one after the other: tokens, slots, positions; rows, targets.  Each starts
            aligned, see `Transfers.rows`.
        outputs: (2, picked) int32: tokens, and whether they are finite.
        logits: (picked, v) fp32, valid until any graph is replayed; None before the capture.
    """

    size: int
    picked: int
    inputs: Tensor
    outputs: Tensor
    graph: "torch.cuda.CUDAGraph"
    logits: Tensor | None = None

    def views(self) -> list[Tensor]:
        """
        Return the five parts of *inputs*.
        """
        lengths = [self.size] * 3 + [self.picked] * 2
        parts = torch.split(self.inputs, [whole(length) for length in lengths])
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def pad(self, flat: _Flat, unused_slot: int) -> list[int]:
        """
        Return *inputs* for *flat*, padded with token 0 of *unused_slot*.
        """
        more = whole(self.size) - len(flat.tokens)
        unpicked = whole(self.picked) - len(flat.rows)
        return [
            *(*flat.tokens, *[0] * more),
            *(*flat.slots, *[unused_slot] * more),
            *(*flat.positions, *[0] * more),
            *(*flat.rows, *[0] * unpicked),
            *(*flat.targets, *[unused_slot] * unpicked),
        ]


def _flatten(step: Step) -> _Flat:
    order = sorted(range(len(step.decodes)), key=lambda at: -step.decodes[at].position)
    decodes = [step.decodes[at] for at in order]
    flat = _Flat(
        tokens=[-1] * len(decodes),
        slots=[decode.slot for decode in decodes],
        positions=[decode.position for decode in decodes],
        spans=[],
        rows=sorted(
            range(len(decodes)), key=order.__getitem__
        ),  # index of each decode in the batch
        targets=step.sampled,
    )
    for chunk in step.chunks:
        size = len(chunk.tokens)
        flat.spans.append(Span(chunk.slot, len(flat.tokens), chunk.start, size))
        flat.tokens.extend(chunk.tokens)
        flat.slots.extend([chunk.slot] * size)
        flat.positions.extend(range(chunk.start, chunk.start + size))
        if chunk.is_last:
            flat.rows.append(len(flat.tokens) - 1)
    return flat


def _signed(seed: int | None) -> int:
    """
    Return the low 32 bits of *seed* as int32 has them.
    """
    assert seed is not None, "the scheduler draws one"
    return (seed & 0xFFFFFFFF) - ((seed & 0x80000000) << 1)
