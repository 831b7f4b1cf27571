"""
Computes a batch with one dense KV cache: a row a request, kept together at the front.

Invariant: the cache is zero wherever no request has written.  A masked value still meets a
weight of 0, and 0 times NaN is NaN: what a broken request leaves behind would break the next.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.engine.protocol import Submit
from runtime.engine.sampling import choose
from runtime.engine.scheduler import Emission
from runtime.models.glm import Glm, attend_grouped


def prepare_torch(threads: int) -> None:
    """
    Give torch *threads* threads; call it before anything is computed.
    """
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


@dataclass(slots=True)
class _Row:
    job: Submit
    rng: random.Random
    length: int = 0  # tokens in the cache
    last: int = 0  # newest token, not in the cache yet

    @property
    def budget(self) -> int:
        return len(self.job.tokens) + self.job.max_tokens


class DenseRunner:
    """
    The batch of one model.

    Args:
        max_rows: Requests at once.
    """

    def __init__(self, model: Glm, max_rows: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._rows: list[_Row] = []  # index is the row of the cache
        self._new: list[_Row] = []
        self._keys = self._values = self._blank(0, 0)

    def add(self, jobs: Sequence[Submit]) -> None:
        self._new += [_Row(job, random.Random(job.seed)) for job in jobs]  # noqa: S311 - sampling

    @torch.inference_mode()
    def drop(self, ids: Collection[int]) -> None:
        self._new = [row for row in self._new if row.job.id not in ids]
        for index in reversed(range(len(self._rows))):
            if self._rows[index].job.id in ids:
                self._vacate(index)

    def reset(self) -> None:
        self._rows, self._new = [], []
        self._keys = self._values = self._blank(0, 0)

    @torch.inference_mode()
    def step(self) -> list[Emission]:
        emissions = self._decode() if self._rows else []
        return emissions + (self._prefill() if self._new else [])

    def _decode(self) -> list[Emission]:
        rows = self._rows
        tokens = self._tensor([[row.last] for row in rows])
        starts = [row.length for row in rows]
        return self._compute(rows, tokens, starts, [1] * len(rows), first_row=0)

    def _prefill(self) -> list[Emission]:
        rows, self._new = self._new, []
        first_row = len(self._rows)
        self._rows += rows
        self._reserve(len(self._rows), max(row.budget for row in rows))
        counts = [len(row.job.tokens) for row in rows]
        longest = max(counts)
        padded = [[*row.job.tokens, *[0] * (longest - len(row.job.tokens))] for row in rows]
        return self._compute(rows, self._tensor(padded), [0] * len(rows), counts, first_row)

    def _compute(
        self,
        rows: Sequence[_Row],
        tokens: Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        first_row: int,
    ) -> list[Emission]:
        """
        Run *tokens* (b, s), of which the first of *counts* are real, behind *starts*.
        """
        for row, added in zip(rows, counts, strict=True):
            row.length += added
        count = self._tensor(counts)
        positions = self._tensor(starts)[:, None] + torch.arange(
            tokens.shape[1], device=tokens.device
        )
        cache = _DenseAttend(
            keys=self._keys[:, first_row : first_row + len(rows)],
            values=self._values[:, first_row : first_row + len(rows)],
            positions=positions,
            is_real=torch.arange(tokens.shape[1], device=tokens.device) < count[:, None],
            longest=max(starts) + tokens.shape[1],
        )
        logits = self._model(tokens, positions, cache, last=count - 1)
        finite = torch.isfinite(logits).all(dim=-1).tolist()
        chosen = choose(
            logits,
            [row.job.temperature for row in rows],
            [row.job.top_p for row in rows],
            [row.rng.random() if row.job.temperature > 0 else 0.0 for row in rows],
        ).tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.last = token
        return [
            Emission(row.job.id, (token,), is_finite)
            for row, token, is_finite in zip(rows, chosen, finite, strict=True)
        ]

    def _reserve(self, rows: int, length: int) -> None:
        """
        Grow the cache to hold *rows* of *length* tokens, by doubling.
        """
        has_rows, has_length = self._keys.shape[1:3]
        if rows <= has_rows and length <= has_length:
            return
        rows = has_rows if rows <= has_rows else min(max(rows, 2 * has_rows), self._max_rows)
        context = self._model.config.context_tokens
        length = has_length if length <= has_length else min(max(length, 2 * has_length), context)
        grown = self._blank(rows, length), self._blank(rows, length)
        for new, old in zip(grown, (self._keys, self._values), strict=True):
            new[:, :has_rows, :has_length] = old
        self._keys, self._values = grown

    def _vacate(self, index: int) -> None:
        """
        Move the last row to *index*, and leave zeros where it was.
        """
        gone, moved = self._rows[index], self._rows[-1]
        last = len(self._rows) - 1
        for cache in (self._keys, self._values):
            if index != last:
                cache[:, index, : moved.length] = cache[:, last, : moved.length]
                cache[:, index, moved.length : gone.length] = 0
            cache[:, last, : moved.length] = 0
        self._rows[index] = moved
        self._rows.pop()

    def _blank(self, rows: int, length: int) -> Tensor:
        # (layers, rows, length, kv_heads, head_dim)
        config = self._model.config
        shape = (config.layers, rows, length, config.kv_heads, config.head_dim)
        return torch.zeros(shape, dtype=self._model.dtype, device=self._model.device)

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._model.device)


class _DenseAttend:
    """
    The Attend of some neighbouring rows of the dense cache.

    Args:
        keys, values: (layers, b, length, kv_heads, head_dim), views of the cache.
        positions: (b, s) int64, where each token stands in its request.
        is_real: (b, s) bool, false for padding.
        longest: Positions that this step can see.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, positions: Tensor, is_real: Tensor, longest: int
    ) -> None:
        self._keys, self._values, self._longest = keys, values, longest
        self._positions = positions
        self._rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        # None where every token is real, as in decoding: one pass less over what is written.
        self._is_real = is_real[..., None, None] if positions.shape[1] > 1 else None
        seen = torch.arange(longest, device=positions.device)
        self._mask = seen <= positions[..., None]  # (b, s, longest)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._is_real is not None:
            k = torch.where(self._is_real, k, 0.0)
            v = torch.where(self._is_real, v, 0.0)
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, self._positions] = k
        values[self._rows, self._positions] = v
        return attend_grouped(q, keys[:, : self._longest], values[:, : self._longest], self._mask)
