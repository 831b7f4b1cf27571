"""
The small-batch GEMM: x @ weight.T for few tokens, at memory speed; the weights are read once.

The weights' rows are split evenly over all multiprocessors, so that none waits for another.  Each
program prefetches: with programmatic launch its first rows are on their way into the L2 cache
while the previous kernel still computes.  The tokens are the narrow side of the product.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.launch import dot, options, prefetch, prefetch_asm, start_next, wait
from runtime.kernels.quantize import GROUP, Quantized

GROUP_SIZE = tl.constexpr(GROUP)


@triton.jit
def _tile(w, scale, rows, at, mask, k, start, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """
    Return weights [rows, block] as DTYPE; 8-bit weights are returned unscaled.
    """
    if KIND == 4:  # two values a byte, the even column in the low half
        packed = tl.load(w + rows[:, None] * (k // 2) + at[None, :], mask=mask, other=0)
        groups = tl.load(scale + rows * (k // GROUP_SIZE) + start // GROUP_SIZE)[:, None]
        low = ((packed & 15).to(tl.int8) - 8).to(DTYPE) * groups.to(DTYPE)
        high = ((packed >> 4).to(tl.int8) - 8).to(DTYPE) * groups.to(DTYPE)
        tile = tl.interleave(low, high)
    else:
        tile = tl.load(w + rows[:, None] * k + at[None, :], mask=mask, other=0).to(DTYPE)
    return tile


@triton.jit(do_not_specialize=["m", "rows_each", "blocks_each"])
def _small_batch_gemm(
    x, w, scale, bias, out, m, n, k, rows_each, blocks_each,
    GATED: tl.constexpr, KIND: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    STEP: tl.constexpr = BLOCK_K // 2 if KIND == 4 else BLOCK_K  # stored columns of a block
    DTYPE: tl.constexpr = x.dtype.element_ty
    local = tl.arange(0, BLOCK_N)
    row = tl.program_id(0) * rows_each + local
    is_row = (local < rows_each) & (row < n)
    stored_k = k // 2 if KIND == 4 else k
    # Rows past the end read the last row: an unmasked pointer must be valid.
    rows = tl.minimum(row, n - 1).to(tl.int64)
    first = tl.program_id(2) * blocks_each * BLOCK_K
    start_next(PDL)
    if PREFETCH is not None:
        ahead = w + rows * stored_k + first * STEP // BLOCK_K
        prefetch(ahead.to(tl.int64, bitcast=True), PREFETCH)
        if GATED:
            prefetch((ahead + n.to(tl.int64) * stored_k).to(tl.int64, bitcast=True), PREFETCH)
    if HAS_BIAS:
        shift = tl.load(bias + rows)
    if KIND == 8:
        factor = tl.load(scale + rows)
        if GATED:
            factor_up = tl.load(scale + rows + n)
    tokens = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_token = tokens < m
    x_rows = tokens.to(tl.int64)
    wait(PDL)
    columns = tl.arange(0, STEP)
    acc = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    for start in range(first, tl.minimum(first + blocks_each * BLOCK_K, k), BLOCK_K):
        at = start * STEP // BLOCK_K + columns
        x_at = start + tl.arange(0, BLOCK_K)
        mask = is_row[:, None]
        x_mask = is_token[:, None]
        if not EVEN_K:
            mask = mask & (at < stored_k)[None, :]
            x_mask = x_mask & (x_at < k)[None, :]
        x_tile = tl.load(x + x_rows[:, None] * k + x_at[None, :], mask=x_mask, other=0.0)
        x_tile = tl.trans(x_tile)
        weights = _tile(w, scale, rows, at, mask, k, start, KIND, DTYPE)
        acc = dot(weights, x_tile, acc, PRECISION)
        if GATED:
            weights = _tile(w, scale, rows + n, at, mask, k, start, KIND, DTYPE)
            acc_up = dot(weights, x_tile, acc_up, PRECISION)
    if KIND == 8:
        acc = acc * factor[:, None]
    if HAS_BIAS:
        acc += shift[:, None].to(tl.float32)
    if GATED:
        if KIND == 8:
            acc_up = acc_up * factor_up[:, None]
        acc = acc * tl.sigmoid(acc) * acc_up
    out += tl.program_id(2).to(tl.int64) * m * n
    target = out + tokens.to(tl.int64)[None, :] * n + row[:, None]
    tl.store(target, acc.to(out.dtype.element_ty), mask=is_row[:, None] & is_token[None, :])


@triton.jit
def _widen(
    w, scale, out, n, k, KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    start = tl.program_id(1) * BLOCK_K
    STEP: tl.constexpr = BLOCK_K // 2 if KIND == 4 else BLOCK_K
    at = start * STEP // BLOCK_K + tl.arange(0, STEP)
    stored_k = k // 2 if KIND == 4 else k
    is_row = rows < n
    mask = (at < stored_k)[None, :] & is_row[:, None]
    rows = tl.minimum(rows, n - 1)
    dtype: tl.constexpr = out.dtype.element_ty
    weights = _tile(w, scale, rows, at, mask, k, start, KIND, dtype)
    if KIND == 8:
        weights = (weights.to(tl.float32) * tl.load(scale + rows)[:, None]).to(dtype)
    columns = start + tl.arange(0, BLOCK_K)
    tl.store(out + rows[:, None] * k + columns[None, :], weights,
        mask=(columns < k)[None, :] & is_row[:, None],
    )  # fmt: skip


@triton.jit
def _swiglu(gate_up, out, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    token = tl.program_id(0).to(tl.int64)
    start_next(PDL)
    wait(PDL)
    gate = tl.load(gate_up + token * 2 * size + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * size + size + columns, mask=mask, other=0.0)
    y = gate * tl.sigmoid(gate) * up.to(tl.float32)
    tl.store(out + token * size + columns, y.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class TileShape:
    """
    How `_small_batch_gemm` divides its work.

    Attributes:
        programs_each: Programs on one multiprocessor at once.
        block_k: Columns of a block; k need not be a multiple of it.
        warps, stages: Triton's num_warps and num_stages.
        prefetch_bytes: Bytes of each row that are prefetched into the L2 cache.
        splits: Programs that share the columns of a row (split-K); each writes a partial sum.
    """

    programs_each: int
    block_k: int
    warps: int
    stages: int
    prefetch_bytes: int = 0
    splits: int = 1


MOST_ROWS = 128  # most weight rows of one program; of each half, if gated

SHARED_BYTES = 220 << 10  # shared memory of one program, below the 227 KiB of an H100


@dataclass(frozen=True, slots=True)
class _ShapeRow:
    """
    The tile shapes for up to *tokens* tokens; None: cuBLAS is faster.

    Attributes:
        wide: For qkv, and every product that is none of the others.
        split: For the two products added to the residual: they may be split.
        gated: For gate_up with SwiGLU.
        head: For weights of at least HEAD_ROWS rows.
    """

    tokens: int
    wide: TileShape | None
    split: TileShape | None
    gated: TileShape | None
    head: TileShape | None


# Measured over whole layers of GLM-4-9B on an H100; see docs/reference/engine.md.
_FULL = (
    _ShapeRow(
        1,
        wide=TileShape(1, 128, 4, 6, 1024),
        split=TileShape(1, 128, 4, 6, 1024, splits=2),
        gated=TileShape(1, 128, 8, 3, 256),
        head=TileShape(2, 128, 4, 4),
    ),
    _ShapeRow(
        16,
        wide=TileShape(1, 256, 4, 4, 1024),
        split=TileShape(1, 128, 4, 6, 1024, splits=2),
        gated=TileShape(1, 128, 8, 3, 256),
        head=TileShape(2, 128, 4, 4),
    ),
    _ShapeRow(
        32,
        wide=TileShape(1, 128, 4, 6, 1024),
        split=TileShape(1, 128, 4, 6, 1024, splits=2),
        gated=TileShape(1, 128, 8, 3, 256),
        head=TileShape(2, 128, 8, 3),
    ),
    _ShapeRow(
        64,
        wide=TileShape(1, 128, 4, 6, 1024),
        split=TileShape(1, 128, 8, 6, 1024, splits=2),
        gated=TileShape(2, 128, 4, 3),
        head=TileShape(2, 128, 8, 3),
    ),
    _ShapeRow(
        128,
        wide=None,
        split=TileShape(1, 128, 8, 4, splits=2),
        gated=TileShape(2, 128, 8, 3),
        head=None,
    ),
)
_QUANTISED = (
    _ShapeRow(
        16,
        wide=TileShape(2, 128, 4, 5),
        split=TileShape(1, 128, 8, 4, splits=4),
        gated=TileShape(2, 128, 4, 3),
        head=None,
    ),
    _ShapeRow(
        64,
        wide=TileShape(1, 128, 4, 3),
        split=TileShape(1, 128, 8, 4, splits=4),
        gated=TileShape(1, 128, 8, 3),
        head=None,
    ),
)
HEAD_ROWS = 65536  # a weight with at least this many rows is a head


def choose_shape(
    x: Tensor, weight: Tensor | Quantized, *, is_gated: bool, may_split: bool
) -> TileShape | None:
    """
    Return the fastest known shape for x (m, k) and a weight (n, k); None: use cuBLAS.
    """
    m = x.shape[0]
    if not m or x.dtype == torch.float32:
        return None
    for row in _QUANTISED if isinstance(weight, Quantized) else _FULL:
        if m <= row.tokens:
            if is_gated:
                return row.gated
            if weight.shape[0] >= HEAD_ROWS:
                return row.head
            return row.split if may_split else row.wide
    return None


def _fit(
    shape: TileShape, stored_rows: int, stored_bits: int, x_rows: int, x_bytes: int
) -> TileShape:
    """
    Return *shape*, with stages and columns reduced until it fits into shared memory.
    """
    while True:
        column = stored_rows * stored_bits // 8 + x_rows * x_bytes
        if column * shape.block_k * shape.stages <= SHARED_BYTES:
            return shape
        if shape.stages > 2:
            shape = replace(shape, stages=shape.stages - 1)
        else:
            shape = replace(shape, block_k=shape.block_k // 2)


def small_batch_gemm(
    x: Tensor,
    weight: Tensor | Quantized,
    bias: Tensor | None = None,
    *,
    is_gated: bool = False,
    out_dtype: torch.dtype | None = None,
    shape: TileShape,
    multiprocessors: int,
    pdl: bool = False,
) -> Tensor:
    """
    Return x (m, k) @ weight.T (k, n), plus *bias* (n,); gated: its SwiGLU, (m, n / 2).

    With `TileShape.splits` above 1 the result is partial sums, (splits, m, n) fp32, for
    `norm.add_rms_norm`.
    """
    values = weight.weight if isinstance(weight, Quantized) else weight
    kind = weight.bits if isinstance(weight, Quantized) else 16
    scale = weight.scale if isinstance(weight, Quantized) else values
    m, k = x.shape
    n = values.shape[0] // (2 if is_gated else 1)
    splits = shape.splits
    assert splits == 1 or (bias is None and not is_gated), (
        "a partial sum has no bias and is not gated"
    )
    dtype = torch.float32 if splits > 1 else out_dtype or x.dtype
    out = torch.empty((splits, m, n), dtype=dtype, device=x.device)
    block_m = max(16, min(triton.next_power_of_2(m), 256))
    programs = max(1, multiprocessors * shape.programs_each // splits)
    rows_each = min(triton.cdiv(n, programs), MOST_ROWS)
    block_n = max(16, triton.next_power_of_2(rows_each))
    bits = 8 * values.element_size() if kind == 16 else kind
    shape = _fit(shape, (2 if is_gated else 1) * block_n, bits, block_m, x.element_size())
    block_k = GROUP if kind == 4 else shape.block_k
    blocks_each = triton.cdiv(triton.cdiv(k, block_k), splits)
    # Prefetch only within the split's own columns: no memory follows the last row.
    row_bytes = values.shape[1] * values.element_size()
    last = (k - (splits - 1) * blocks_each * block_k) * row_bytes // k
    ahead = min(shape.prefetch_bytes, last) // 16 * 16 if pdl and row_bytes % 16 == 0 else 0
    _small_batch_gemm[(triton.cdiv(n, rows_each), triton.cdiv(m, block_m), splits)](
        x, values, scale, values if bias is None else bias, out, m, n, k, rows_each, blocks_each,
        GATED=is_gated, KIND=kind, HAS_BIAS=bias is not None, EVEN_K=k % block_k == 0,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        PREFETCH=prefetch_asm(ahead) if ahead > 0 else None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", PDL=pdl,
        num_warps=shape.warps, num_stages=shape.stages, **options(pdl),
    )  # fmt: skip
    return out[0] if splits == 1 else out


def swiglu(gate_up: Tensor, *, pdl: bool = False) -> Tensor:
    """
    Compute `reference.gated`.
    """
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        block = min(triton.next_power_of_2(size), 2048)
        _swiglu[(tokens, triton.cdiv(size, block))](
            gate_up, out, size, BLOCK=block, PDL=pdl, num_warps=4, **options(pdl)
        )
    return out


def widen(weight: Quantized, dtype: torch.dtype) -> Tensor:
    """
    Compute `quantize.dequantize`.
    """
    n, k = weight.shape
    out = torch.empty((n, k), dtype=dtype, device=weight.weight.device)
    _widen[(triton.cdiv(n, 8), triton.cdiv(k, GROUP))](
        weight.weight, weight.scale, out, n, k, KIND=weight.bits, BLOCK_N=8, BLOCK_K=GROUP,
        num_warps=4,
    )  # fmt: skip
    return out
