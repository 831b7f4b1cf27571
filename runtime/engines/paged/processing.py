"""
Processes the logits of the rows that ask for it, between the model and the sampler.

A plain step comes here only to learn that no row asks.  Otherwise the rows that ask are copied,
processed and sampled anew, behind the step's own sampling, and their tokens replaced on the device;
the rows beside them keep theirs.  Nothing waits for the device, so the next step is launched before
these tokens are known, as always.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from runtime.engines.base.sampling import MAX_BIASED, MAX_LOGPROBS, TokenLogprobs
from runtime.engines.paged.step import Join, Step
from runtime.engines.paged.transfers import Transfers
from runtime.kernels import processors

BLOCK_ROWS = 32  # processed at once: 6 copies of their logits live at the same time
FIRST_HISTORIES = 8

Given = TypeVar("Given")
Sample = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # logits, slots, positions, result


@dataclass(frozen=True, slots=True)
class _Asks:
    """
    What the request in a slot asks for.

    Attributes:
        is_always: Its logits are processed in each step, and not before `stops_from` alone.
        top_k: 0 for all, also where it would change nothing.
        has_min_p: Whether it would change anything.
        history: Row of its penalties' history; 0 for none.
        stops_from: Position from whose logits a stop token may be sampled.
        logprobs: See `SamplingParams`.
    """

    is_always: bool
    top_k: int
    has_min_p: bool
    has_bias: bool
    history: int
    stop_token_ids: Sequence[int]
    stops_from: int
    logprobs: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    """
    A row of a step whose logits are processed.

    Attributes:
        index: In the order of `Step.sampled`.
        asks: None for a row with a mask alone.
    """

    index: int
    slot: int
    position: int
    asks: _Asks | None
    mask: bytes | None


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What the rows of one step ask for.

    Attributes:
        processed: Rows whose logits are processed.
        scored: Rows with log probabilities: index in `Step.sampled`, number of likeliest tokens.
    """

    processed: Sequence[_Row]
    scored: Sequence[tuple[int, int]]


class LogitsProcessing:
    """
    The state that processors keep for each slot, and their use in a step.

    Args:
        slots: Slots with a request; there is one more, for padding.
        temperatures: Of each slot, on the device.
    """

    def __init__(
        self, slots: int, vocabulary: int, temperatures: Tensor, transfers: Transfers
    ) -> None:
        device = temperatures.device
        self._slots, self._vocabulary, self._device = slots, vocabulary, device
        self._temperatures, self._transfers = temperatures, transfers
        self._mask_bytes = -(-vocabulary // 32) * 4
        self._asks: dict[int, _Asks] = {}  # by slot
        # Of each slot: repetition, frequency and presence penalty, min_p.
        self._numbers = torch.zeros((slots + 1, 4), device=device)
        self._numbers[:, 0] = 1
        # Made for the first request that needs them.
        self._history: Tensor | None = None  # (rows, v) int32; row 0 stays 0
        self._history_of: dict[int, int] = {}  # rows by slot
        # (slots + 1, MAX_BIASED) each, of which the last stays 0: int64 token ids, and biases
        self._biases: tuple[Tensor, Tensor] | None = None

    def warm_up(self) -> None:
        """
        Compile and load the kernels: the first request that needs them must not stop all others.
        """
        own = torch.zeros((1, self._vocabulary), device=self._device)
        at, row, unused = self._transfers.rows([0], [1], [self._slots])
        self._history = torch.zeros((2, self._vocabulary), dtype=torch.int32, device=self._device)
        self._penalize(own, row, unused)
        self._history = None
        self._apply_masks(own, at, self._transfers.upload_words([bytes(self._mask_bytes)]))
        self._keep_top_k(own, row, 1)
        processors.keep_min_p(own, own[:, 0], own[:, 0])
        processors.add_bias(own, at.long()[:, None], own.new_zeros((1, 1)))
        processors.drop_tokens(own, at.long(), at.long())
        processors.log_probabilities(own, at.long(), min(MAX_LOGPROBS, own.shape[1]))

    def join(self, joins: Sequence[Join]) -> None:
        """
        Take in what new rows ask for; forget what their slots asked for before.
        """
        for join in joins:
            self._asks.pop(join.slot, None)
        asking = [(join, asks) for join in joins if (asks := self._read(join)) is not None]
        if not asking:
            return
        slots = self._transfers.upload([join.slot for join, _ in asking]).long()
        numbers = [
            [
                join.params.repetition_penalty,
                join.params.frequency_penalty,
                join.params.presence_penalty,
                join.params.min_p if asks.has_min_p else 0.0,
            ]
            for join, asks in asking
        ]
        self._numbers.index_copy_(0, slots, self._transfers.upload(numbers, torch.float32))
        for join, asks in asking:
            if asks.history:
                self._start_history(asks.history, join.prompt)
            if asks.has_bias:
                self._set_bias(join)
            self._asks[join.slot] = asks

    def select(self, step: Step) -> Asked | None:
        """
        Return what the rows of *step* ask for; None for a step of plain rows.
        """
        if not self._asks and not step.masks:
            return None
        masks = dict(step.masks)
        # A kernel would read beyond the end of a short one.
        assert all(len(mask) == self._mask_bytes for mask in masks.values()), "a mask's length"
        places = [(d.slot, d.position) for d in step.decodes]
        places += [(c.slot, c.start + len(c.tokens) - 1) for c in step.chunks if c.is_last]
        processed, scored = [], []
        for index, (slot, position) in enumerate(places):
            asks, mask = self._asks.get(slot), masks.get(slot)
            if mask is not None or (
                asks is not None and (asks.is_always or position < asks.stops_from)
            ):
                processed.append(_Row(index, slot, position, asks, mask))
            if asks is not None and asks.logprobs is not None:
                scored.append((index, asks.logprobs))
        return Asked(processed, scored) if processed or scored else None

    def run(self, asked: Asked, logits: Tensor, result: Tensor, sample: Sample) -> Tensor | None:
        """
        Sample the processed rows anew; return what `logprobs_of` reads, None without scored rows.

        Args:
            logits: (n, v) fp32 of the step's sampled rows, and of padding behind them; unchanged.
            result: (2, n) int32: tokens, which are replaced, and whether they are finite.
            sample: Writes tokens to its result and, by slot, for the next step.
        """
        scores = []
        most = max((top for _, top in asked.scored), default=0)
        counted: list[tuple[Tensor, Tensor]] = []
        for rows in _blocks(asked.processed):
            counted += self._process(rows, logits, result, sample)
        for scored in _blocks(asked.scored):
            (index,) = self._transfers.rows([row for row, _ in scored])
            own = logits.index_select(0, index)
            tokens = result[0].index_select(0, index).long()
            chosen, highest, ids = processors.log_probabilities(own, tokens, most)
            numbers = torch.cat((chosen[:, None], highest), dim=1).view(torch.int32)
            scores.append(torch.cat((numbers, ids.int()), dim=1))
        found = torch.cat(scores) if scores else None
        # Last: a step that runs out of memory before is repeated, and would count twice.
        for histories, tokens in counted:
            assert self._history is not None
            processors.count_tokens(self._history, histories, tokens)
        return found

    def _process(
        self, rows: Sequence[_Row], logits: Tensor, result: Tensor, sample: Sample
    ) -> list[tuple[Tensor, Tensor]]:
        """
        Process and sample *rows*; return the rows of the history to be counted, with their tokens.
        """
        asks = [row.asks for row in rows]
        unused = self._slots  # a slot keeps the numbers and biases of an earlier request
        index, slots, positions, top_k, histories, numbered, with_bias = self._transfers.rows(
            [row.index for row in rows],
            [row.slot for row in rows],
            [row.position for row in rows],
            [each.top_k if each else 0 for each in asks],
            [each.history if each else 0 for each in asks],
            [row.slot if row.asks else unused for row in rows],
            [row.slot if row.asks and row.asks.has_bias else unused for row in rows],
        )
        own = logits.index_select(0, index)
        if any(each and each.has_bias for each in asks):
            assert self._biases is not None
            tokens, biases = (table.index_select(0, with_bias) for table in self._biases)
            processors.add_bias(own, tokens, biases)
        is_penalized = any(each and each.history for each in asks)
        if is_penalized:
            self._penalize(own, histories, numbered)
        self._drop_stops(rows, own)
        self._mask(rows, own)
        if any(each and each.has_min_p for each in asks):
            temperatures = self._temperatures.index_select(0, slots)
            min_p = self._numbers.index_select(0, numbered)[:, 3]
            processors.keep_min_p(own, temperatures, min_p)
        if most := max(each.top_k if each else 0 for each in asks):
            self._keep_top_k(own, top_k, most)
        room = torch.empty((2, BLOCK_ROWS), dtype=torch.int32, device=self._device)
        sampled = room[:, : len(rows)]
        sample(own, slots, positions, sampled)
        result[0].index_copy_(0, index.long(), sampled[0])
        return [(histories.long(), sampled[0].long())] if is_penalized else []

    # Kernels are imported where they run: a CPU has no Triton.

    def _penalize(self, own: Tensor, histories: Tensor, slots: Tensor) -> None:
        assert self._history is not None
        if self._device.type != "cuda":
            history = self._history.index_select(0, histories)
            repetition, frequency, presence, _ = self._numbers.index_select(0, slots).unbind(1)
            processors.penalize(own, history, repetition, frequency, presence)
            return
        from runtime.kernels import adjust

        adjust.penalize(own, self._history, histories, self._numbers, slots)

    def _apply_masks(self, own: Tensor, rows: Tensor, masks: Tensor) -> None:
        if self._device.type != "cuda":
            processors.apply_masks(own, rows.long(), masks)
            return
        from runtime.kernels import adjust

        adjust.apply_masks(own, rows, masks)

    def _keep_top_k(self, own: Tensor, top_k: Tensor, most: int) -> None:
        if self._device.type != "cuda":
            processors.keep_top_k(own, top_k.long(), most)
            return
        from runtime.kernels import top_k as kernel

        kernel.keep_top_k(own, top_k)

    def _drop_stops(self, rows: Sequence[_Row], own: Tensor) -> None:
        """
        Drop the stop tokens of rows that are shorter than min_tokens.
        """
        pairs = [
            (at, token)
            for at, row in enumerate(rows)
            if row.asks and row.position < row.asks.stops_from
            for token in row.asks.stop_token_ids
        ]
        if pairs:
            at, tokens = self._transfers.upload(list(zip(*pairs, strict=True))).long()
            processors.drop_tokens(own, at, tokens)

    def _mask(self, rows: Sequence[_Row], own: Tensor) -> None:
        masks = [(at, row.mask) for at, row in enumerate(rows) if row.mask is not None]
        if masks:
            at = self._transfers.upload([at for at, _ in masks])
            self._apply_masks(own, at, self._transfers.upload_words([mask for _, mask in masks]))

    def _read(self, join: Join) -> _Asks | None:
        params = join.params
        # Greedy: the likeliest token is the same.
        is_drawn = params.temperature > 0
        top_k = params.top_k if is_drawn and params.top_k < self._vocabulary else 0
        has_min_p = is_drawn and params.min_p > 0
        has_bias = bool(params.logit_bias)
        is_always = bool(top_k or has_min_p or has_bias or params.has_penalty)
        if not (is_always or join.stops_from or params.logprobs is not None):
            return None
        return _Asks(
            is_always,
            top_k,
            has_min_p,
            has_bias,
            self._history_row(join.slot) if params.has_penalty else 0,
            [id for id in join.stop_token_ids if self._is_token(id)],
            join.stops_from,
            params.logprobs,
        )

    def _history_row(self, slot: int) -> int:
        """
        Return the row of *slot*, which keeps it; rows are few while requests with penalties are.
        """
        row = self._history_of.setdefault(slot, len(self._history_of) + 1)
        before = self._history
        if before is None or row >= len(before):
            rows = FIRST_HISTORIES if before is None else 2 * len(before)
            shape = min(rows, self._slots + 1), self._vocabulary
            self._history = torch.zeros(shape, dtype=torch.int32, device=self._device)
            if before is not None:
                self._history[: len(before)] = before
        return row

    def _start_history(self, row: int, prompt: Sequence[int]) -> None:
        assert self._history is not None
        history = self._history[row].zero_()
        if prompt:
            tokens = self._transfers.upload(prompt).long()
            history.index_fill_(0, tokens, processors.IN_PROMPT)

    def _set_bias(self, join: Join) -> None:
        if self._biases is None:
            shape = self._slots + 1, MAX_BIASED
            self._biases = (
                torch.zeros(shape, dtype=torch.int64, device=self._device),
                torch.zeros(shape, device=self._device),
            )
        pairs = [pair for pair in join.params.logit_bias if self._is_token(pair[0])]
        pairs += [(0, 0.0)] * (MAX_BIASED - len(pairs))
        upload = self._transfers.upload
        tokens, biases = self._biases
        tokens[join.slot] = upload([token for token, _ in pairs], torch.int64)
        biases[join.slot] = upload([bias for _, bias in pairs], torch.float32)

    def _is_token(self, id: int) -> bool:
        # The API refuses others.  Here one would end the process, and all requests with it.
        return 0 <= id < self._vocabulary


def _blocks(rows: Sequence[Given]) -> Iterator[Sequence[Given]]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def logprobs_of(asked: Asked, found: Tensor) -> Mapping[int, TokenLogprobs]:
    """
    Return the log probabilities of each scored row, by its index in `Step.sampled`.

    Args:
        found: What `LogitsProcessing.run` returned, in host memory.
    """
    most = max(top for _, top in asked.scored)
    numbers = found[:, : 1 + most].contiguous().view(torch.float32).tolist()
    ids = found[:, 1 + most :].tolist()
    return {
        row: TokenLogprobs(chosen, tuple(zip(own[:top], highest[:top], strict=True)))
        for (row, top), (chosen, *highest), own in zip(asked.scored, numbers, ids, strict=True)
    }
