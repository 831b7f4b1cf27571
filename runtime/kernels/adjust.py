"""
Penalties and token masks on the device: one pass over the rows that have them, and no copy.
"""

import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels import processors

DROPPED = tl.constexpr(processors.DROPPED)
COUNT = tl.constexpr(processors.IN_PROMPT - 1)
BLOCK = 4096


@triton.jit
def _penalize(
    logits, history, rows, numbers, slots, size, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    kept = tl.load(rows + row).to(tl.int64)
    if kept > 0:
        numbers += tl.load(slots + row) * WIDTH
        repetition, frequency = tl.load(numbers), tl.load(numbers + 1)
        presence = tl.load(numbers + 2)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        is_token = column < size
        x = tl.load(logits + row * size + column, mask=is_token, other=0.0)
        seen = tl.load(history + kept * size + column, mask=is_token, other=0)
        repeated = tl.where(x > 0, tl.div_rn(x, repetition + tl.zeros_like(x)), x * repetition)
        x = tl.where(seen != 0, repeated, x)
        count = (seen & COUNT).to(tl.float32)
        x = x - frequency * count - tl.where(count > 0, presence, 0.0)
        tl.store(logits + row * size + column, x, mask=is_token)


@triton.jit
def _apply_masks(logits, rows, masks, size, words, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    logits += tl.load(rows + number).to(tl.int64) * size
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = column < size
    word = tl.load(masks + number * words + column // 32, mask=is_token, other=0)
    is_allowed = ((word >> (column % 32)) & 1) == 1
    tl.store(logits + column, DROPPED, mask=is_token & (is_allowed == 0))


def penalize(logits: Tensor, history: Tensor, rows: Tensor, numbers: Tensor, slots: Tensor) -> None:
    """
    Compute `processors.penalize` for logits (b, v) fp32, in place.

    Args:
        history: (h, v) int32, of which row i has row *rows* (b,) int32; 0 for no penalties.
        numbers: (s, 3 or more) fp32: repetition, frequency and presence penalty of each slot.
        slots: (b,) int32.
    """
    count, size = logits.shape
    grid = count, triton.cdiv(size, BLOCK)
    _penalize[grid](
        logits,
        history,
        rows,
        numbers,
        slots,
        size,
        WIDTH=numbers.shape[1],
        BLOCK=BLOCK,
        num_warps=8,
    )


def apply_masks(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """
    Compute `processors.apply_masks` for logits (b, v) fp32 and rows (n,) int32, in place.
    """
    size = logits.shape[1]
    grid = len(rows), triton.cdiv(size, BLOCK)
    _apply_masks[grid](logits, rows, masks, size, masks.shape[1], BLOCK=BLOCK, num_warps=8)
