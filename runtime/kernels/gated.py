"""
SwiGLU of a product with many tokens, where the arithmetic is the cost: one kernel for both.

Tiles come by the tensor memory accelerator, each multiprocessor computes one after the other, and
neighbours share weights in the L2 cache.  An H100 is at its power limit there: what is neither
written nor read again leaves more of it for the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from runtime.kernels.launch import dot, options, start_next, wait

LEAST_TOKENS = 768  # from here on it is faster than cuBLAS with SwiGLU behind it
BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 64  # of each half
BAND = 16  # tiles that lie below each other and are computed one after the other
WARPS, STAGES = 8, 4


@triton.jit(do_not_specialize=["m"])  # compiled once for all
def _gated(
    x, w, out, m, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr,
    PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    downs, acrosses = tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS)
    start_next(PDL)
    wait(PDL)
    for tile in tl.range(tl.program_id(0), downs * acrosses, PROGRAMS, flatten=True):
        first = tile // (BAND * acrosses) * BAND
        rows = tl.minimum(downs - first, BAND)
        row = (first + tile % (BAND * acrosses) % rows) * ROWS
        column = tile % (BAND * acrosses) // rows * COLUMNS
        acc = tl.zeros([ROWS, 2 * COLUMNS], dtype=tl.float32)
        for start in range(0, k, DEPTH):
            weights = tl.reshape(w.load([0, column, start]), (2 * COLUMNS, DEPTH))
            acc = dot(x.load([row, start]), tl.trans(weights), acc, "tf32")
        halves = tl.permute(tl.reshape(acc, (ROWS, 2, COLUMNS)), (0, 2, 1))
        gate, up = tl.split(halves)
        out.store([row, column], (gate * tl.sigmoid(gate) * up).to(out.dtype))


def can_gate(x: Tensor, weight: Tensor) -> bool:
    """
    Return whether `gated` takes x (m, k) and weight (2n, k): 16 bits, rows of whole 16 bytes.
    """
    return x.element_size() == 2 and x.shape[1] % 8 == 0 and weight.shape[0] % 16 == 0


def gated(x: Tensor, weight: Tensor, *, multiprocessors: int, pdl: bool = False) -> Tensor:
    """
    Return SwiGLU of x (m, k) @ weight.T (k, 2n): (m, n).
    """
    (m, k), n = x.shape, weight.shape[0] // 2
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    programs = min(multiprocessors, triton.cdiv(m, BLOCK_M) * triton.cdiv(n, BLOCK_N))
    _gated[(programs,)](
        TensorDescriptor.from_tensor(x, [BLOCK_M, BLOCK_K]),
        TensorDescriptor.from_tensor(weight.view(2, n, k), [2, BLOCK_N, BLOCK_K]),
        TensorDescriptor.from_tensor(out, [BLOCK_M, BLOCK_N]), m, n, k,
        ROWS=BLOCK_M, COLUMNS=BLOCK_N, DEPTH=BLOCK_K, BAND=BAND, PROGRAMS=multiprocessors, PDL=pdl,
        num_warps=WARPS, num_stages=STAGES, **options(pdl),
    )  # fmt: skip
    return out
