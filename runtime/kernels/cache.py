"""
The paged KV cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KV_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
INT8_TOP = 127.0


@dataclass(frozen=True, slots=True)
class PagedCache:
    """
    The keys and values of all layers, in pages.

    Attributes:
        keys, values: (layers, pages, kv_heads, page_tokens, head_dim) in the model's type, fp8
            e4m3 or int8.
        key_scales, value_scales: (layers, pages, kv_heads, page_tokens) fp32, the factor of each
            int8 value; None for other types.
        table: (slots, row_pages) int32: the pages of each slot, in order.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    table: Tensor

    @property
    def page_tokens(self) -> int:
        return self.keys.shape[3]

    @property
    def is_scaled(self) -> bool:
        return self.key_scales is not None

    def stores(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Return the keys, values, key scales and value scales of *layer*, for a kernel.

        Without scales, keys and values take their place; the kernel must not read them.
        """
        keys, values = self.keys[layer], self.values[layer]
        if self.key_scales is None or self.value_scales is None:
            return keys, values, keys, values
        return keys, values, self.key_scales[layer], self.value_scales[layer]


def make_cache(
    *,
    layers: int,
    pages: int,
    kv_heads: int,
    page_tokens: int,
    head_dim: int,
    slots: int,
    row_pages: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> PagedCache:
    """
    Return an empty cache; fp8 e4m3 and int8 as *dtype* mean a quantised one.
    """
    shape = (layers, pages, kv_heads, page_tokens, head_dim)
    is_int8 = dtype == torch.int8
    return PagedCache(
        keys=torch.zeros(shape, dtype=dtype, device=device),
        values=torch.zeros(shape, dtype=dtype, device=device),
        key_scales=torch.zeros(shape[:-1], device=device) if is_int8 else None,
        value_scales=torch.zeros(shape[:-1], device=device) if is_int8 else None,
        table=torch.zeros((slots, row_pages), dtype=torch.int32, device=device),
    )
