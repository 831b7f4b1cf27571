"""
One kernel for all work between the qkv product and attention: norms of q and k (Qwen3), rotation
of neighbouring pairs, and the store of k and v into their pages.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.cache import INT8_TOP, PagedCache
from runtime.kernels.launch import options, start_next, wait

TOP = tl.constexpr(INT8_TOP)


@triton.jit
def _turn(
    qkv, cosines, sines, q_norm, k_norm, keys, values, key_scales, value_scales, table,
    slots, positions, eps, page_stride, row_pages,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF_ROTARY: tl.constexpr,
    PAGE: tl.constexpr, EACH: tl.constexpr, HAS_NORMS: tl.constexpr, KIND: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * EACH + tl.arange(0, EACH)
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    HALF: tl.constexpr = DIM // 2
    pair = tl.arange(0, HALF)
    column = tl.arange(0, DIM)
    is_turned = (head < HEADS + KV_HEADS)[:, None]
    is_stored = (head >= HEADS) & (head < ALL)
    # The unrotated values of a query without norms are left in place.
    is_changed = is_turned & (HAS_NORMS | (column < 2 * HALF_ROTARY))[None, :]
    at = qkv + token * ALL * DIM + head[:, None] * DIM + column[None, :]
    in_rotary = pair < HALF_ROTARY
    start_next(PDL)
    # These were written before the step's first kernel, so they can be read before `wait`.
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    page = tl.load(table + slot * row_pages + position // PAGE).to(tl.int64)
    cos = tl.load(cosines + token * HALF_ROTARY + pair, mask=in_rotary, other=1.0)[None, :]
    sin = tl.load(sines + token * HALF_ROTARY + pair, mask=in_rotary, other=0.0)[None, :]
    wait(PDL)
    x = tl.load(at, mask=is_changed | is_stored[:, None], other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (EACH, HALF, 2)))
    if HAS_NORMS:
        rstd = tl.rsqrt(tl.sum(even * even + odd * odd, axis=1) / DIM + eps)[:, None]
        is_q = (head < HEADS)[:, None]
        columns = 2 * pair[None, :]
        even_weight = tl.where(is_q, tl.load(q_norm + columns), tl.load(k_norm + columns))
        odd_weight = tl.where(is_q, tl.load(q_norm + columns + 1), tl.load(k_norm + columns + 1))
        dtype = qkv.dtype.element_ty
        normed_even = (even * rstd * even_weight).to(dtype).to(tl.float32)
        normed_odd = (odd * rstd * odd_weight).to(dtype).to(tl.float32)
        even = tl.where(is_turned, normed_even, even)
        odd = tl.where(is_turned, normed_odd, odd)
    cos = tl.where(is_turned, cos, 1.0)
    sin = tl.where(is_turned, sin, 0.0)
    turned = tl.interleave(even * cos - odd * sin, odd * cos + even * sin)
    tl.store(at, turned.to(qkv.dtype.element_ty), mask=is_changed)

    is_key = is_stored & (head < HEADS + KV_HEADS)
    is_value = is_stored & (head >= HEADS + KV_HEADS)
    place = position % PAGE
    kv_head = tl.where(is_key, head - HEADS, head - HEADS - KV_HEADS)
    line = page * page_stride // DIM + kv_head * PAGE + place  # of DIM values
    if KIND == 8:
        # tl.max ignores NaN, so a row with NaN gets a NaN scale explicitly.
        bad = tl.sum((turned != turned).to(tl.int32), axis=1)
        scale = tl.where(bad > 0, float("nan"), tl.max(tl.abs(turned), axis=1) / TOP)
        tl.store(key_scales + line, scale, mask=is_key)
        tl.store(value_scales + line, scale, mask=is_value)
        turned = tl.floor(turned * (1.0 / tl.maximum(scale, 1e-30)[:, None]) + 0.5)
    elif KIND == 1:
        # min and max turn NaN into a number; keep NaN.
        is_number = turned == turned
        turned = tl.where(is_number, tl.minimum(tl.maximum(turned, -448.0), 448.0), turned)
    into = line[:, None] * DIM + column[None, :]
    kind = keys.dtype.element_ty
    tl.store(keys + into, turned.to(kind), mask=is_key[:, None])
    tl.store(values + into, turned.to(kind), mask=is_value[:, None])


def turn_and_store(
    qkv: Tensor,
    angles: Tensor,
    cache: PagedCache,
    layer: int,
    slots: Tensor,
    positions: Tensor,
    *,
    heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    pdl: bool = False,
) -> None:
    """
    Norm and rotate q and k of qkv (t, (h + 2g) * d) in place, and store k and v in the cache.

    Args:
        angles: (2, t, rotary / 2) fp32: cosines, then sines.
        slots, positions: (t,) int32.
    """
    tokens = qkv.shape[0]
    if not tokens:
        return
    _, _, kv_heads, page, dim = cache.keys.shape
    each = 1 if tokens <= 8 else 16
    all_heads = heads + 2 * kv_heads
    kind = 8 if cache.is_scaled else 1 if cache.keys.dtype == torch.float8_e4m3fn else 16
    _turn[(tokens, triton.cdiv(all_heads, each))](
        qkv, angles[0], angles[1], qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm, *cache.stores(layer),
        cache.table, slots, positions, eps, kv_heads * page * dim, cache.table.shape[1],
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, HALF_ROTARY=angles.shape[2], PAGE=page,
        EACH=each, HAS_NORMS=q_norm is not None, KIND=kind, PDL=pdl,
        num_warps=1 if each == 1 else 4, **options(pdl),
    )  # fmt: skip
