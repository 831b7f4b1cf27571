"""
The Attend of one step over the paged cache: decodes first, then chunks of prompts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime.kernels import reference
from runtime.kernels.cache import PagedCache
from runtime.kernels.prefill import Prefill

if TYPE_CHECKING:
    from runtime.kernels.attention import Workspace
    from runtime.models.decoder import DecoderLayer


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

    def __call__(self, layer: "DecoderLayer", qkv: Tensor, angles: Tensor) -> Tensor:
        if self._workspace is None:
            q, k, v = layer.split(qkv, angles)
            decoded = self._reference(layer, q, k, v)
        else:
            decoded = self._fused(layer, self._workspace, qkv, angles)
            q, k, v = layer.parts(qkv)  # normed and rotated where they lie
        if self._prefill is None:
            return decoded
        prefilled = self._prefill(layer.index, q, k, v).flatten(1)
        return torch.cat((decoded, prefilled)) if self._decodes else prefilled

    def _fused(
        self, layer: "DecoderLayer", workspace: "Workspace", qkv: Tensor, angles: Tensor
    ) -> Tensor:
        from runtime.kernels import attention, rope

        rope.turn_and_store(
            qkv, angles, self._cache, layer.index, self._slots, self._positions,
            heads=layer.heads, q_norm=layer.q_norm, k_norm=layer.k_norm,
            eps=layer.config.norm_eps, pdl=self._pdl,
        )  # fmt: skip
        first = self._decodes
        return attention.decode_attention(
            qkv[:first], self._cache, layer.index, self._slots[:first], self._positions[:first],
            workspace, heads=layer.heads, pdl=self._pdl,
        )  # fmt: skip

    def _reference(self, layer: "DecoderLayer", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        reference.write_cache(self._cache, layer.index, k, v, self._slots, self._positions)
        first = self._decodes
        decoded = reference.decode_attention(
            q[:first], self._cache, layer.index, self._slots[:first], self._positions[:first]
        )
        return decoded.flatten(1)
