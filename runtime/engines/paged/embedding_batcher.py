"""
Embeddings beside the scheduler: a static batch of texts between two steps.  Without torch.
"""

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from runtime.engines.base.protocol import Embed, FinishReason
from runtime.engines.paged.fairness import PROMPT_COST, FairShares
from runtime.engines.paged.lines import Entry, Lines
from runtime.engines.paged.step import DeviceLost, EmbedTexts

log = logging.getLogger("runtime.engine")

MAX_TEXTS = 32  # of a batch


@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """
    Attributes:
        vectors: Pairs of request id and base64 of the vector's fp32 values, little-endian.
        ended: As in `EngineReport`; of every request that is done.
    """

    vectors: list[tuple[int, str]]
    ended: list[tuple[int, str, str]]


class EmbeddingBatcher:
    """
    The queue of texts, in fair order between keys: with the counters of their other requests.

    Args:
        embed: Computes one batch.
        batch_tokens: Of a batch, padding included; a longer text is a batch of its own.
        shares: Those of the scheduler beside it.
    """

    def __init__(self, embed: EmbedTexts, batch_tokens: int, shares: FairShares) -> None:
        self._embed, self._batch_tokens, self._shares = embed, batch_tokens, shares
        self._lines: Lines[Embed] = Lines(shares)
        self._deadlines: list[tuple[float, int]] = []  # a heap; it has ids that have left

    def __len__(self) -> int:
        return len(self._lines)

    def submit(self, request: Embed, now_s: float) -> None:
        self._shares.arrive(request.share, now_s)
        tokens = len(request.tokens)
        self._lines.push(Entry(request.id, request.share, request.priority, tokens, request))
        heappush(self._deadlines, (now_s + request.timeout_s, request.id))

    def cancel(self, id: int) -> None:
        if entry := self._lines.pop(id):
            self._shares.leave_queue(entry.share)

    def turn(self, now_s: float, *, most_tokens: int | None = None) -> EmbeddingReport:
        """
        Compute one batch; what is late by then is not computed.

        Args:
            most_tokens: Of the batch while answers are computed, which wait for it; None for as
                many as it may have.  A longer text is not parted.
        """
        report = EmbeddingReport([], [])
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, id = heappop(self._deadlines)
            if id in self._lines:
                self.cancel(id)
                report.ended.append((id, FinishReason.EXPIRED, ""))
        most = self._batch_tokens
        batch = self._next_batch(most if most_tokens is None else min(most, most_tokens))
        if batch:
            self._compute(batch, report)
        if not self._lines:
            self._deadlines.clear()
        return report

    def _next_batch(self, most_tokens: int) -> list[Embed]:
        batch: list[Entry[Embed]] = []
        longest = 0
        for entry in self._lines.in_order(lambda _: True):
            longest = max(longest, entry.tokens)
            if batch and longest * (len(batch) + 1) > most_tokens:
                break
            batch.append(entry)
            if len(batch) == MAX_TEXTS:
                break
        for entry in batch:
            self.cancel(entry.id)
            self._shares.charge(entry.share, PROMPT_COST * entry.tokens)
        return [entry.item for entry in batch]

    def _compute(self, batch: Sequence[Embed], report: EmbeddingReport) -> None:
        try:
            vectors = self._embed([request.tokens for request in batch])
        except DeviceLost:
            raise
        except Exception as error:
            if len(batch) > 1:  # whatever one text does wrong ends that one alone
                for request in batch:
                    self._compute([request], report)
                return
            log.exception("engine.embedding_failed id=%d", batch[0].id)
            report.ended.append((batch[0].id, FinishReason.ERROR, f"{type(error).__name__}"))
            return
        for request, vector in zip(batch, vectors, strict=True):
            if vector is None:
                report.ended.append((request.id, FinishReason.NONFINITE, ""))
                continue
            report.vectors.append((request.id, base64.b64encode(vector).decode()))
            report.ended.append((request.id, FinishReason.STOP, ""))
