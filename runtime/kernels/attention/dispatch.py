"""
Attention of one step over the paged cache: decodes first, then chunks of prompts.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from runtime.kernels import reference
from runtime.kernels.attention.chunked import Prefill, attend_lone
from runtime.kernels.cache import PagedCache

if TYPE_CHECKING:
    from runtime.kernels.attention.decode import Workspace


class AttentionLayer(Protocol):
    """
    What attention needs of a decoder's layer.

    Attributes:
        index: Of the layer, from 0.
        heads: Query heads of this shard.
        q_norm, k_norm: Gains (head_dim,); None where heads are not normed.
    """

    index: int
    heads: int
    norm_eps: float

    @property
    def q_norm(self) -> Tensor | None: ...

    @property
    def k_norm(self) -> Tensor | None: ...

    def parts(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def split(self, qkv: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class PagedAttend:
    """
    See `models.decoder.Attend`.

    Args:
        slots, positions: (t,) int32, of each token.
        decodes: How many of the tokens, the first ones, are decodes.
        workspace: Of the kernels; None computes the reference.
    """

    def __init__(
        self,
        cache: PagedCache,
        slots: Tensor,
        positions: Tensor,
        decodes: int,
        prefill: Prefill | None,
        workspace: "Workspace | None",
        *,
        pdl: bool = False,
    ) -> None:
        self._cache, self._slots, self._positions = cache, slots, positions
        self._decodes, self._prefill = decodes, prefill
        self._workspace, self._pdl = workspace, pdl
        # Of the reference, the same in all layers:
        self._places: tuple[Tensor, Tensor] | None = None
        self._rows: list[tuple[int, int]] | None = None

    def __call__(self, layer: AttentionLayer, qkv: Tensor, angles: Tensor) -> Tensor:
        first, prefill = self._decodes, self._prefill
        q, k, v = self._store(layer, qkv, angles)
        if prefill is not None and prefill.is_lone:
            return attend_lone(q, k, v).flatten(1)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._decode(layer.index, q[:first], out[:first])
        if prefill is not None:
            prefill(layer.index, q, out, pdl=self._pdl)
        return out.flatten(1)

    def _store(
        self, layer: AttentionLayer, qkv: Tensor, angles: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        where = self._cache, layer.index
        if self._workspace is None:
            q, k, v = layer.split(qkv, angles)
            if self._places is None:
                self._places = reference.places_of(self._cache, self._slots, self._positions)
            reference.store_at(*where, k, v, *self._places)
            return q, k, v
        from runtime.kernels import rope

        rope.turn_and_store(
            qkv, angles, *where, self._slots, self._positions,
            heads=layer.heads, q_norm=layer.q_norm, k_norm=layer.k_norm,
            eps=layer.norm_eps, pdl=self._pdl,
        )  # fmt: skip
        return layer.parts(qkv)  # normed and rotated where they lie

    def _decode(self, layer: int, q: Tensor, out: Tensor) -> None:
        slots, positions = self._slots[: len(q)], self._positions[: len(q)]
        if self._workspace is None:
            if self._rows is None:
                self._rows = list(zip(slots.tolist(), positions.tolist(), strict=True))
            if self._rows:
                out[:] = reference.attend_rows(q, self._cache, layer, self._rows)
            return
        from runtime.kernels.attention import decode as attention

        attention.decode_attention(
            q, self._cache, layer, slots, positions, self._workspace, out=out, pdl=self._pdl
        )
