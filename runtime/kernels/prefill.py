"""
Attention of prompts' chunks to themselves and to what the cache has before them.

FlashAttention takes all chunks of a step at once; a long one without a prefix goes to cuDNN, which
is twice as fast there (617 against 306 TFLOP/s for 8,000 tokens on an H100).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels import reference
from runtime.kernels.cache import PagedCache

LONG_TOKENS = 1024  # from here on cuDNN
GATHER_TOKENS = 32_768  # of prefixes and chunks behind them that are read from the cache at once
BLOCK_TOKENS = 512  # of the reference: its masks are as large as they times what they see


@dataclass(frozen=True, slots=True)
class Span:
    """
    One chunk.

    Attributes:
        first: Its first token in the flat batch.
        start: Tokens of its row before it, in the cache.
    """

    slot: int
    first: int
    start: int
    tokens: int

    @property
    def seen(self) -> int:
        return self.start + self.tokens

    @property
    def is_long(self) -> bool:
        return self.start == 0 and self.tokens >= LONG_TOKENS

    def goes_with(self, other: "Span") -> bool:
        """
        Return whether one call takes both: not where either needs cuDNN, or one a prefix.
        """
        is_long = self.is_long or other.is_long
        return not is_long and bool(self.start) == bool(other.start)


@dataclass(frozen=True, slots=True)
class _Run:
    """
    Neighbouring chunks that one call takes.

    Attributes:
        q_ends, k_ends: (chunks + 1,) int32, on the device.
        pages, places: Of all that the chunks see, in order; None where that is only themselves.
    """

    spans: tuple[Span, ...]
    q_ends: Tensor
    k_ends: Tensor
    pages: Tensor | None
    places: Tensor | None

    @property
    def rows(self) -> slice:
        return slice(self.spans[0].first, self.spans[-1].first + self.spans[-1].tokens)


class Prefill:
    """
    The attention of one step's chunks; made once a step, called once a layer.
    """

    def __init__(self, spans: Sequence[Span], cache: PagedCache) -> None:
        self._cache = cache
        self._runs: list[_Run] = []
        run: list[Span] = []
        for span in spans:
            seen = sum(other.seen for other in run) + span.seen
            if run and (not run[-1].goes_with(span) or (span.start and seen > GATHER_TOKENS)):
                self._runs.append(_plan(tuple(run), cache))
                run = []
            run.append(span)
        if run:
            self._runs.append(_plan(tuple(run), cache))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """
        Return the attention (s, h, d) of the chunks' tokens, which are the last s of q (t, h, d);
        their k and v (t, g, d) are in the cache already.
        """
        parts = [self._attend(run, layer, q, k, v) for run in self._runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(self, run: _Run, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = run.rows
        if q.dtype == torch.float32 or not q.is_cuda:
            return torch.cat([self._reference(span, layer, q) for span in run.spans])
        if run.spans[0].is_long:
            return _long(q, k[rows], v[rows], rows.start)
        if run.pages is None or run.places is None:
            return _flash(q[rows], k[rows], v[rows], run)
        keys, values = _gather(self._cache, layer, run.pages, run.places, q.dtype)
        return _flash(q[rows], keys, values, run)

    def _reference(self, span: Span, layer: int, q: Tensor) -> Tensor:
        keys, values = reference.read_cache(self._cache, layer, span.slot, span.seen, q.dtype)
        parts = []
        for first in range(0, span.tokens, BLOCK_TOKENS):
            count = min(BLOCK_TOKENS, span.tokens - first)
            at, seen = span.first + first, span.start + first + count
            parts.append(reference.attend(q[at : at + count], keys[:seen], values[:seen]))
        return torch.cat(parts)


def _plan(spans: tuple[Span, ...], cache: PagedCache) -> _Run:
    device = cache.table.device
    ends = torch.tensor(
        [[0, *(s.tokens for s in spans)], [0, *(s.seen for s in spans)]], dtype=torch.int32
    ).cumsum(1, dtype=torch.int32)
    on_device = ends.to(device, non_blocking=True)
    pages = places = None
    if any(span.start for span in spans):
        seen = [torch.arange(span.seen, device=device) for span in spans]
        pages = torch.cat(
            [
                cache.table[span.slot].index_select(0, at // cache.page_tokens)
                for span, at in zip(spans, seen, strict=True)
            ]
        )
        places = torch.cat(seen) % cache.page_tokens
    return _Run(spans, on_device[0], on_device[1], pages, places)


def _flash(q: Tensor, keys: Tensor, values: Tensor, run: _Run) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later

    found = varlen_attn(
        q,
        keys,
        values,
        run.q_ends,
        run.k_ends,
        max(span.tokens for span in run.spans),
        max(span.seen for span in run.spans),
        window_size=(-1, 0),  # causal, the last query beside the last key
        **_grouping(varlen_attn),
    )
    assert isinstance(found, Tensor)
    return found


@cache
def _grouping(varlen_attn: Callable[..., object]) -> Any:
    """
    Return what tells this torch that query heads share KV heads; older ones see it themselves.
    """
    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def _long(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
    """
    Attend the rows of q from *first* on to k and v, with cuDNN.

    cuDNN plans 75 ms for a length that it has not seen, so lengths are rounded up.  What is behind
    the end is zero in k and v, for 0 times NaN is NaN; in q nobody looks at it.
    """
    tokens = k.shape[0]
    step = 1 << max(tokens.bit_length() - 4, 7)
    padded = -(-tokens // step) * step
    k, v = (functional.pad(part, (0, 0, 0, 0, 0, padded - tokens)) for part in (k, v))
    start = q.storage_offset() + first * q.stride(0)
    if start + padded * q.stride(0) <= q.untyped_storage().nbytes() // q.element_size():
        q = q.as_strided((padded, *q.shape[1:]), q.stride(), start)
    else:
        q = functional.pad(q[first : first + tokens], (0, 0, 0, 0, 0, padded - tokens))
    heads_first = (part.transpose(0, 1)[None] for part in (q, k, v))
    y: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads_first, None, False, 0.0, True, False
    )[0]
    return y[0].transpose(0, 1)[:tokens]


def _gather(
    cache: PagedCache, layer: int, pages: Tensor, places: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    found = []
    for store, scales in (
        (cache.keys[layer], cache.key_scales),
        (cache.values[layer], cache.value_scales),
    ):
        if store.element_size() == 1:
            read = store.view(torch.uint8)[pages, :, places].view(store.dtype).to(dtype)
        else:
            read = store[pages, :, places]
        if scales is not None:
            read = (read * scales[layer][pages, :, places][..., None]).to(dtype)
        found.append(read)  # (t, g, d)
    return found[0], found[1]
