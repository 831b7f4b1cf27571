"""
The prefill kernel: each token of a chunk attends to its row's tokens up to its own position.

A tile is a few neighbouring tokens of one chunk with all query heads that share a KV head, so that
a page is read once for all of them, and next to nothing is computed above the diagonal.
Source: "FlashAttention-2", Dao 2023, for the loop; FlashAttention-3's packed groups for the tile.
"""

import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.attention.decode import LOG2E, NO_SCORE, take_page
from runtime.kernels.cache import PagedCache
from runtime.kernels.launch import options, start_next, wait

TILE_ROWS = 128  # tokens times heads
# Of a thread: two programs a multiprocessor, of which one waits.  Heads of 256 don't compile so.
REGISTERS, REGISTERS_DIM = 128, 128


@triton.jit
def _attend_chunks(
    q, keys, values, key_scales, value_scales, table, tiles, out, scale, q_stride, page_stride,
    row_pages,
    GROUP: tl.constexpr, HEADS_EACH: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    DIM: tl.constexpr, PAGE: tl.constexpr, IS_SCALED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tiles + 4 * tl.program_id(0)
    kv_head = tl.program_id(1)
    token = tl.arange(0, ROWS) // HEADS_EACH
    head = tl.arange(0, ROWS) % HEADS_EACH
    column = tl.arange(0, DIM)
    place = tl.arange(0, PAGE)
    start_next(PDL)
    first, count = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    slot, start = tl.load(tile + 2), tl.load(tile + 3)
    wait(PDL)
    is_row = ((token < count) & (head < GROUP))[:, None]
    at_head = (kv_head * GROUP + head)[:, None] * DIM + column[None, :]
    query = tl.load(q + (first + token)[:, None] * q_stride + at_head, mask=is_row, other=0.0)
    position = start + token
    end = start + count
    peak = tl.full([ROWS], NO_SCORE, dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, DIM], dtype=tl.float32)
    row_table = table + slot * row_pages
    whole = (start + 1) // PAGE  # pages that all tokens of the tile see
    for index in range(whole):
        page = tl.load(row_table + index).to(tl.int64)
        line = page * page_stride // DIM + kv_head * PAGE + place
        peak, total, acc = take_page(
            query, keys, values, key_scales, value_scales, line, column, None, None,
            scale, peak, total, acc, False, IS_SCALED, "tf32",
        )  # fmt: skip
    for index in range(whole, tl.cdiv(end, PAGE)):
        page = tl.load(row_table + index).to(tl.int64)
        line = page * page_stride // DIM + kv_head * PAGE + place
        at = index * PAGE + place
        peak, total, acc = take_page(
            query, keys, values, key_scales, value_scales, line, column,
            at[None, :] <= position[:, None], at < end,
            scale, peak, total, acc, True, IS_SCALED, "tf32",
        )  # fmt: skip
    target = out + (first + token)[:, None] * (KV_HEADS * GROUP * DIM) + at_head
    tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=is_row)


def tile_tokens(group: int) -> int:
    """
    Return how many tokens a tile has where *group* query heads share a KV head.
    """
    return max(1, TILE_ROWS // int(triton.next_power_of_2(group)))


def attend_chunks(
    q: Tensor,
    cache: PagedCache,
    layer: int,
    tiles: Tensor,
    *,
    out: Tensor,
    pdl: bool = False,
) -> None:
    """
    Write the attention of the tokens in *tiles* to *out*; their keys and values are stored.

    Args:
        q: (t, h, d), whose rows may lie apart.
        tiles: (n, 4) int32: first token in q, how many (up to `tile_tokens`), slot, and the
            position of the first.
        out: (t, h, d).
    """
    _, _, kv_heads, page, dim = cache.keys.shape
    group = q.shape[1] // kv_heads
    each = triton.next_power_of_2(group)
    _attend_chunks[(tiles.shape[0], kv_heads)](
        q, *cache.stores(layer), cache.table, tiles, out,
        LOG2E / dim**0.5, q.stride(0), kv_heads * page * dim, cache.table.shape[1],
        GROUP=group, HEADS_EACH=each, ROWS=each * tile_tokens(group), KV_HEADS=kv_heads, DIM=dim,
        PAGE=page, IS_SCALED=cache.is_scaled, PDL=pdl, num_warps=8, num_stages=2,
        maxnreg=REGISTERS if dim <= REGISTERS_DIM else None, **options(pdl),
    )  # fmt: skip
