"""
The decode kernel: one query for each row, whose pages are split over several programs.

The query heads that share a KV head are the rows of one matrix product, so that each page is read
once.  The programs of a row store partial sums; the last one to finish adds them up.
Source: "Flash-Decoding", Dao et al. 2023, for the split; the order of the sum is fixed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.cache import PagedCache
from runtime.kernels.launch import dot, options, start_next, wait

NO_SCORE = tl.constexpr(-1.0e30)  # not -inf, whose differences are NaN
LOG2E = 1.4426950408889634
# Of the loop over pages: Triton halves them, for a page's place is read before the page.
STAGES, FEW_STAGES = 5, 3
LARGE_PAGE_BYTES = 32 << 10  # of one KV head; of larger ones there is no room for two buffers


@triton.jit
def take_page(
    query, keys, values, key_scales, value_scales, line, column, is_seen, is_held, scale,
    peak, total, acc,
    IS_MASKED: tl.constexpr, IS_SCALED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    Return (peak, total, acc) of the softmax so far with one page more.

    Args:
        line: (page,) of keys and values, where the page's tokens are; of `DIM` values.
        is_seen: (rows or 1, page) whether a row of *query* (rows, d) sees a token of the page.
        is_held: (page,) whether any row does; neither is read unless *IS_MASKED*.
        scale: What scores are multiplied with for `exp2`: log2(e) over the root of d.
    """
    at = line[:, None] * acc.shape[1] + column[None, :]
    key = tl.load(keys + at).to(query.dtype)
    score = tl.zeros([query.shape[0], line.shape[0]], dtype=tl.float32)
    score = dot(query, tl.trans(key), score, PRECISION)
    if IS_SCALED:
        score = score * tl.load(key_scales + line)[None, :]
    if IS_MASKED:
        score = tl.where(is_seen, score, NO_SCORE)
    new_peak = tl.maximum(peak, tl.max(score, axis=1) * scale)
    shrink = tl.exp2(peak - new_peak)
    share = tl.exp2(score * scale - new_peak[:, None])  # one instruction, with the difference
    if IS_MASKED:
        share = tl.where(is_seen, share, 0.0)
        # Old values past the row's end may be NaN, and 0 times NaN is NaN.
        value = tl.load(values + at, mask=is_held[:, None], other=0.0).to(query.dtype)
    else:
        value = tl.load(values + at).to(query.dtype)
    total = total * shrink + tl.sum(share, axis=1)
    if IS_SCALED:
        value_scale = tl.load(value_scales + line)
        if IS_MASKED:
            value_scale = tl.where(is_held, value_scale, 0.0)
        share = share * value_scale[None, :]
    acc = dot(share.to(query.dtype), value, acc * shrink[:, None], PRECISION)
    return new_peak, total, acc


@triton.jit(do_not_specialize=["splits"])  # compiled once for all
def _attend(
    q, keys, values, key_scales, value_scales, table, slots, positions, out,
    partial, weights, counters, scale, q_stride, page_stride, row_pages, splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, IS_SCALED: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # Decodes come longest first: so do programs, whatever their head and split.
    row = tl.program_id(1)
    kv_head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(0) // KV_HEADS
    head = tl.arange(0, ROWS)
    is_head = (head < GROUP)[:, None]
    column = tl.arange(0, DIM)
    place = tl.arange(0, PAGE)
    start_next(PDL)
    slot = tl.load(slots + row)
    length = tl.load(positions + row) + 1
    wait(PDL)
    pages = tl.cdiv(length, PAGE)
    each = tl.cdiv(pages, splits)
    used = tl.cdiv(pages, each)  # splits that have a page
    first = split * each
    last = tl.minimum(first + each, pages)
    if first < last:
        at_q = row.to(tl.int64) * q_stride + (kv_head * GROUP + head)[:, None] * DIM
        query = tl.load(q + at_q + column[None, :], mask=is_head, other=0.0)
        peak = tl.full([ROWS], NO_SCORE, dtype=tl.float32)
        total = tl.zeros([ROWS], dtype=tl.float32)
        acc = tl.zeros([ROWS, DIM], dtype=tl.float32)
        for index in range(first, last):
            page = tl.load(table + slot * row_pages + index).to(tl.int64)
            line = page * page_stride // DIM + kv_head * PAGE + place
            is_seen = index * PAGE + place < length
            peak, total, acc = take_page(
                query, keys, values, key_scales, value_scales, line, column, is_seen[None, :],
                is_seen, scale, peak, total, acc, True, IS_SCALED, PRECISION,
            )  # fmt: skip
        at_out = (row.to(tl.int64) * KV_HEADS + kv_head) * GROUP * DIM
        target = out + at_out + head[:, None] * DIM + column[None, :]
        if used == 1:
            tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=is_head)
        else:
            pair = row * KV_HEADS + kv_head
            base = (pair * splits + split).to(tl.int64) * ROWS
            tl.store(partial + (base + head)[:, None] * DIM + column[None, :], acc)
            tl.store(weights + 2 * (base + head), peak)
            tl.store(weights + 2 * (base + head) + 1, total)
            tl.debug_barrier()  # all threads have stored before one says so
            done = tl.atomic_add(counters + pair, 1, sem="acq_rel")
            if done == used - 1:
                tl.store(counters + pair, 0)
                peak = tl.full([ROWS], NO_SCORE, dtype=tl.float32)
                total = tl.zeros([ROWS], dtype=tl.float32)
                acc = tl.zeros([ROWS, DIM], dtype=tl.float32)
                for index in range(used):
                    base = (pair * splits + index).to(tl.int64) * ROWS
                    at_part = (base + head)[:, None] * DIM + column[None, :]
                    part = tl.load(partial + at_part, cache_modifier=".cg")
                    part_peak = tl.load(weights + 2 * (base + head), cache_modifier=".cg")
                    part_total = tl.load(weights + 2 * (base + head) + 1, cache_modifier=".cg")
                    new_peak = tl.maximum(peak, part_peak)
                    shrink = tl.exp2(peak - new_peak)
                    grow = tl.exp2(part_peak - new_peak)
                    acc = acc * shrink[:, None] + part * grow[:, None]
                    total = total * shrink + part_total * grow
                    peak = new_peak
                tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=is_head)


class Workspace:
    """
    Buffers of the partial sums, for at most *rows* rows at once.
    """

    def __init__(
        self, rows: int, kv_heads: int, group: int, dim: int, device: torch.device
    ) -> None:
        pairs, padded = rows * kv_heads, max(16, triton.next_power_of_2(group))
        # See `choose_splits`: a batch has no more programs than this.
        programs = max(pairs, 2 * SHARED_PAIRS)
        self.partial = torch.empty(programs * padded * dim, device=device)
        self.weights = torch.empty(programs * padded * 2, device=device)
        self.counters = torch.zeros(pairs, dtype=torch.int32, device=device)


# Measured on an H100, as is what `choose_splits` makes of them.
MOST_PROGRAMS = 128
MOST_SPLITS = 16
SHARED_PAIRS = 256  # each is split in two, so that rows of unlike length even out


def choose_splits(rows: int, kv_heads: int) -> int:
    """
    Return how many programs share the pages of one row and KV head; a power of two.
    """
    pairs: int = triton.next_power_of_2(rows * kv_heads)
    if pairs == SHARED_PAIRS:
        return 2
    return max(1, min(MOST_SPLITS, MOST_PROGRAMS // pairs))


def decode_attention(
    q: Tensor,
    cache: PagedCache,
    layer: int,
    slots: Tensor,
    positions: Tensor,
    workspace: Workspace,
    *,
    out: Tensor,
    pdl: bool = False,
    splits: int | None = None,
) -> None:
    """
    Write `reference.decode_attention` of q (b, h, d), whose rows may lie apart, to *out*.

    Args:
        slots, positions: (b,) int32.
        out: (b, h, d).
    """
    rows, heads, _ = q.shape
    _, _, kv_heads, page, dim = cache.keys.shape
    if not rows:
        return
    group = heads // kv_heads
    splits = splits or choose_splits(rows, kv_heads)
    page_bytes = page * dim * cache.keys.element_size()
    stages = STAGES if page_bytes <= LARGE_PAGE_BYTES else FEW_STAGES
    _attend[(kv_heads * splits, rows)](
        q, *cache.stores(layer), cache.table, slots, positions, out,
        workspace.partial, workspace.weights, workspace.counters,
        LOG2E / dim**0.5, q.stride(0), kv_heads * page * dim, cache.table.shape[1],
        splits,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), KV_HEADS=kv_heads, DIM=dim,
        PAGE=page, IS_SCALED=cache.is_scaled,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", PDL=pdl,
        num_warps=4, num_stages=stages, **options(pdl),
    )  # fmt: skip
