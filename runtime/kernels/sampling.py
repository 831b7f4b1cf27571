"""
Samples tokens from logits on the device: one program per row, no sort.

top_p keeps the tokens whose logit reaches a threshold.  An eight-way search finds the threshold.
"""

import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.launch import options, start_next, wait
from runtime.kernels.reference import MULTIPLIERS

FIRST, SECOND = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
LOWEST = tl.constexpr(-3.0e38)
STEP = tl.constexpr(2.0**-23)  # resolution of the noise, see `reference.gumbel`
PARTS = tl.constexpr(8)  # thresholds tried in one pass over the logits; a power of two
LOOKS = tl.constexpr(7)  # passes over the logits: a resolution of SPAN / 8**7
SPAN = tl.constexpr(32.0)  # searched range of logits / temperature: 2**17 * exp(-32) ~ 0


@triton.jit
def _hash32(x):
    x = x ^ (x >> 16)
    x = x * FIRST
    x = x ^ (x >> 15)
    x = x * SECOND
    return x ^ (x >> 16)


@triton.jit
def _masses(logits, inverse, peak, thresholds, size, BLOCK: tl.constexpr):
    """
    Return (PARTS,): for each threshold, the sum of exp(logit / temperature - peak) at or above it.
    """
    total = tl.zeros([PARTS, BLOCK], dtype=tl.float32)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < size, other=LOWEST) * inverse - peak
        total += tl.where(x[None, :] >= thresholds[:, None], tl.exp(x)[None, :], 0.0)
    return tl.sum(total, axis=1)


@triton.jit
def _sample(
    logits, slots, temperatures, top_ps, seeds, positions, newest, tokens, finite, size,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start_next(PDL)
    wait(PDL)
    slot = tl.load(slots + row)
    logits += row * size
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], LOWEST, dtype=tl.float32)
    where = tl.zeros([BLOCK], dtype=tl.int32)
    bad = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, size, BLOCK):
        column = start + lane
        x = tl.load(logits + column, mask=column < size, other=LOWEST)
        bad |= (tl.abs(x) < float("inf")).to(tl.int32) ^ 1
        is_better = x > best
        best = tl.where(is_better, x, best)
        where = tl.where(is_better, column, where)
    peak = tl.max(best)
    chosen = tl.min(tl.where(best == peak, where, size))  # ties: the lowest token id
    is_finite = tl.sum(bad) == 0
    temperature = tl.load(temperatures + slot)
    if temperature > 0 and is_finite:
        inverse = 1.0 / temperature
        scaled_peak = peak * inverse
        top_p = tl.load(top_ps + slot)
        low = -SPAN
        if top_p < 1.0:
            part = tl.arange(0, PARTS)
            width = SPAN
            wanted = SPAN  # the first pass replaces it by top_p of the total
            for look in range(LOOKS):
                width = width / PARTS
                thresholds = low + part * width
                masses = _masses(logits, inverse, scaled_peak, thresholds, size, BLOCK // 4)
                if look == 0:
                    wanted = top_p * tl.max(masses)
                # Part 0 is `low`, which is always reached.
                met = tl.sum(((masses >= wanted) & (part > 0)).to(tl.int32))
                low += met * width
        key = _hash32(tl.load(seeds + slot).to(tl.uint32))
        other = _hash32(key ^ tl.load(positions + row).to(tl.uint32))
        best = tl.full([BLOCK], LOWEST, dtype=tl.float32)
        for start in range(0, size, BLOCK):
            column = start + lane
            x = tl.load(logits + column, mask=column < size, other=LOWEST) * inverse - scaled_peak
            bits = _hash32(_hash32(column.to(tl.uint32) + key) ^ other)
            uniform = (bits >> 9).to(tl.float32) * STEP + 0.5 * STEP
            noisy = x - tl.log(-tl.log(uniform))
            noisy = tl.where((x >= low) & (column < size), noisy, LOWEST)
            is_better = noisy > best
            best = tl.where(is_better, noisy, best)
            where = tl.where(is_better, column, where)
        chosen = tl.min(tl.where(best == tl.max(best), where, size))
    chosen = tl.minimum(chosen, size - 1)
    tl.store(newest + slot, chosen)
    tl.store(tokens + row, chosen)
    tl.store(finite + row, is_finite.to(tl.int32))


def sample(
    logits: Tensor,
    slots: Tensor,
    temperatures: Tensor,
    top_ps: Tensor,
    seeds: Tensor,
    positions: Tensor,
    newest: Tensor,
    tokens: Tensor,
    finite: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """
    Compute `reference.sample` for logits (b, v) fp32; write tokens and finite, both (b,) int32.

    Args:
        slots, positions: (b,) int32.
        temperatures, top_ps, seeds: (slots,), indexed by slot.
        newest: (slots,) int32; receives each row's token at its slot, for the next step.
    """
    rows, size = logits.shape
    if rows:
        _sample[(rows,)](
            logits, slots, temperatures, top_ps, seeds, positions, newest, tokens, finite, size,
            BLOCK=min(4096, triton.next_power_of_2(size)), PDL=pdl, num_warps=16, **options(pdl),
        )  # fmt: skip
