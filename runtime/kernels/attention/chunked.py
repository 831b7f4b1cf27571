"""
Attention of prompts' chunks to themselves and to the tokens before them in the cache.

The prefill kernel computes all chunks of a step at once.  A very long chunk that is a whole step
and has no prefix is computed by cuDNN, which is a few percent faster there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels import reference
from runtime.kernels.cache import PagedCache

LONG_TOKENS = 6144  # at least this many: cuDNN
BLOCK_TOKENS = 512  # of the reference: bounds the size of its masks


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
    def rows(self) -> slice:
        return slice(self.first, self.first + self.tokens)

    def tiles(self, most: int) -> Iterator[tuple[int, int, int, int]]:
        """
        Yield tiles of at most *most* tokens: see `prefill.attend_chunks`.
        """
        for at in range(0, self.tokens, most):
            yield self.first + at, min(most, self.tokens - at), self.slot, self.start + at


class Prefill:
    """
    The attention of one step's chunks; created once a step, called once a layer.

    Args:
        group: Query heads that share a KV head.
        is_fused: Whether kernels compute it, in place of the reference.

    Attributes:
        is_lone: Whether cuDNN computes it: see `attend_lone`.
    """

    def __init__(
        self, spans: Sequence[Span], cache: PagedCache, *, group: int, is_fused: bool
    ) -> None:
        self._cache, self._spans = cache, spans
        only = spans[0]
        self.is_lone = (
            is_fused
            and cache.keys.element_size() > 1  # with 8 bits, chunks attend to the stored values
            and len(spans) == 1
            and only.tokens >= LONG_TOKENS
            and only.first == only.start == 0
        )
        self._tiles = _tile(spans, cache, group) if is_fused and not self.is_lone else None

    def __call__(self, layer: int, q: Tensor, out: Tensor, *, pdl: bool = False) -> None:
        """
        Write the attention of the chunks' tokens to their rows of *out* (t, h, d).

        Args:
            q: (t, h, d), of all tokens of the step; their k and v are in the cache already.
        """
        if self._tiles is None:
            for span in self._spans:
                out[span.rows] = self._reference(span, layer, q)
            return
        from runtime.kernels.attention import prefill as chunks

        chunks.attend_chunks(q, self._cache, layer, self._tiles, out=out, pdl=pdl)

    def _reference(self, span: Span, layer: int, q: Tensor) -> Tensor:
        keys, values = reference.read_cache(self._cache, layer, span.slot, span.seen, q.dtype)
        parts = []
        for first in range(0, span.tokens, BLOCK_TOKENS):
            count = min(BLOCK_TOKENS, span.tokens - first)
            at, seen = span.first + first, span.start + first + count
            parts.append(reference.attend(q[at : at + count], keys[:seen], values[:seen]))
        return torch.cat(parts)


def _tile(spans: Sequence[Span], cache: PagedCache, group: int) -> Tensor:
    """
    Return the tiles of *spans*, longest context first, so that these don't finish last.
    """
    from runtime.kernels.attention.prefill import tile_tokens

    tiles = [tile for span in spans for tile in span.tiles(tile_tokens(group))]
    tiles.sort(key=lambda tile: -tile[3])
    device = cache.table.device
    host = torch.tensor(tiles, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def attend_lone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """
    Return the attention (t, h, d) of one chunk without a prefix to itself, with cuDNN.

    cuDNN plans each new length for 75 ms, so lengths are rounded up.  The padding of k and v is
    zero, because 0 times NaN is NaN; that of q is not read.
    """
    tokens = q.shape[0]
    step = 1 << (tokens.bit_length() - 4)
    padded = -(-tokens // step) * step
    k, v = (functional.pad(part, (0, 0, 0, 0, 0, padded - tokens)) for part in (k, v))
    q = q.as_strided((padded, *q.shape[1:]), q.stride())  # see `fused._linear_with_slack`
    heads_first = (part.transpose(0, 1)[None] for part in (q, k, v))
    y: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads_first, None, False, 0.0, True, False
    )[0]
    return y[0].transpose(0, 1)[:tokens]
