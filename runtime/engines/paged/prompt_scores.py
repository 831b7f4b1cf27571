"""
Log probabilities of prompts' tokens, for the chunks of a step that ask for them.

The hidden states of a chunk are there anyway.  Their logits are computed SCORED_ROWS at a time,
because those of a whole chunk may take more memory than the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.engines.base.sampling import TokenLogprobs
from runtime.engines.paged.step import Step
from runtime.engines.paged.transfers import Transfers
from runtime.kernels import processors
from runtime.kernels.attention.chunked import Span

SCORED_ROWS = 64


@dataclass(frozen=True, slots=True)
class ScoredChunks:
    """
    The chunks of a step whose tokens are scored.

    Attributes:
        chunks: Index in `Step.chunks`, number of scored tokens, number of likeliest ones.
        rows, targets: Of each scored token: the row of the flat batch before it, and its id.
    """

    chunks: Sequence[tuple[int, int, int]]
    rows: Sequence[int]
    targets: Sequence[int]

    @property
    def most(self) -> int:
        return max(top for _, _, top in self.chunks)


def scored_chunks(step: Step, spans: Sequence[Span]) -> ScoredChunks | None:
    """
    Return what is to be scored of *step*, whose chunks lie at *spans*; None for nothing.
    """
    chunks: list[tuple[int, int, int]] = []
    rows: list[int] = []
    targets: list[int] = []
    for index, (chunk, span) in enumerate(zip(step.chunks, spans, strict=True)):
        if chunk.targets:
            count = len(chunk.targets)
            chunks.append((index, count, chunk.top))
            rows += range(span.first, span.first + count)
            targets += chunk.targets
    return ScoredChunks(chunks, rows, targets) if chunks else None


def score_chunks(
    scored: ScoredChunks,
    hidden: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    transfers: Transfers,
) -> Tensor:
    """
    Return for each scored token, as int32: its log probability and those of the likeliest tokens,
    which are fp32, and the ids of these.  Waits for no device.

    Args:
        hidden: (n, h), of `scored.rows`.
    """
    targets = transfers.upload(scored.targets).long()
    parts = []
    for start in range(0, len(scored.rows), SCORED_ROWS):
        rows = slice(start, start + SCORED_ROWS)
        logits = logits_of(hidden[rows])
        chosen, highest, ids = processors.log_probabilities(logits, targets[rows], scored.most)
        numbers = torch.cat((chosen[:, None], highest), dim=1).view(torch.int32)
        parts.append(torch.cat((numbers, ids.int()), dim=1))
    return torch.cat(parts)


def prompt_logprobs(scored: ScoredChunks, found: Tensor) -> Mapping[int, Sequence[TokenLogprobs]]:
    """
    Return the log probabilities of each chunk's targets, by its index in `Step.chunks`.

    Args:
        found: What `score_chunks` returned, in host memory.
    """
    most = scored.most
    numbers = found[:, : 1 + most].contiguous().view(torch.float32).tolist()
    ids = found[:, 1 + most :].tolist()

    def take(start: int, count: int, top: int) -> Iterator[TokenLogprobs]:
        for (chosen, *highest), own in zip(
            numbers[start : start + count], ids[start : start + count], strict=True
        ):
            yield TokenLogprobs(chosen, tuple(zip(own[:top], highest[:top], strict=True)))

    result, start = {}, 0
    for index, count, top in scored.chunks:
        result[index] = list(take(start, count, top))
        start += count
    return result
