"""
Embeddings beside the scheduler: a static batch of texts between two steps.  Without torch.
"""

import base64
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.engines.base.protocol import Embed, FinishReason
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
    The queue of texts, in the order in which they came.

    Args:
        embed: Computes one batch.
        batch_tokens: Of a batch, padding included; a longer text is a batch of its own.
    """

    def __init__(self, embed: EmbedTexts, batch_tokens: int) -> None:
        self._embed, self._batch_tokens = embed, batch_tokens
        self._queue: deque[tuple[Embed, float]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, request: Embed, now_s: float) -> None:
        self._queue.append((request, now_s + request.timeout_s))

    def cancel(self, id: int) -> None:
        self._queue = deque(pair for pair in self._queue if pair[0].id != id)

    def turn(self, now_s: float) -> EmbeddingReport:
        """
        Compute one batch; what is late by then is not computed.
        """
        report = EmbeddingReport([], [])
        late = [request.id for request, late_s in self._queue if late_s <= now_s]
        if late:
            self._queue = deque(pair for pair in self._queue if pair[1] > now_s)
            report.ended.extend((id, FinishReason.EXPIRED, "") for id in late)
        batch = self._next_batch()
        if batch:
            self._compute(batch, report)
        return report

    def _next_batch(self) -> list[Embed]:
        batch: list[Embed] = []
        longest = 0
        while self._queue and len(batch) < MAX_TEXTS:
            longest = max(longest, len(self._queue[0][0].tokens))
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                break
            batch.append(self._queue.popleft()[0])
        return batch

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
