"""
Drops all but the k likeliest tokens of each row on the device: one program per row, no sort.

The bits of a logit, with those of the negative ones turned, are ordered as the logits are.  The
k-th largest is found digit by digit: eight thresholds are tried in one pass over the row.  The time
does not depend on k, which a client chooses.
"""

import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels import processors

DROPPED = tl.constexpr(processors.DROPPED)
DIGITS = tl.constexpr(11)  # of 32 bits: one of two bits, the others of three


@triton.jit
def _ordered(x):
    """
    Return uint32 numbers with the order of x, fp32.  Both zeros are one number.
    """
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    turned = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return turned.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _keep_top_k(logits, top_k, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    wanted = tl.load(top_k + row)
    logits += row * size
    lane = tl.arange(0, BLOCK)
    if wanted > 0:
        part = tl.arange(0, 8).to(tl.uint32)
        least = tl.full([1], 0, dtype=tl.uint32)
        for digit in tl.static_range(DIGITS):
            shift = 30 - 3 * digit
            thresholds = least + (part << shift)
            counts = tl.zeros([8, BLOCK], dtype=tl.int32)
            for start in range(0, size, BLOCK):
                column = start + lane
                key = _ordered(tl.load(logits + column, mask=column < size, other=0.0))
                is_met = (key[None, :] >= thresholds[:, None]) & (column < size)[None, :]
                counts += is_met.to(tl.int32)
            # Fewer and fewer tokens reach the next threshold.  The first digit is under 4.
            met = (tl.sum(counts, axis=1) >= wanted) & (part > 0)
            if digit == 0:
                met = met & (part < 4)
            least += tl.sum(met.to(tl.uint32)) << shift
        for start in range(0, size, BLOCK):
            column = start + lane
            x = tl.load(logits + column, mask=column < size, other=0.0)
            tl.store(logits + column, DROPPED, mask=(_ordered(x) < least) & (column < size))


def keep_top_k(logits: Tensor, top_k: Tensor) -> None:
    """
    Compute `processors.keep_top_k` for logits (b, v) fp32 and top_k (b,) int32, in place.
    """
    rows, size = logits.shape
    block = min(2048, triton.next_power_of_2(size))
    _keep_top_k[(rows,)](logits, top_k, size, BLOCK=block, num_warps=16)
