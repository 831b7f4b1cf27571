"""
RMS norm, alone or fused with the residual addition before it: one program per token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.launch import options, start_next, wait


@triton.jit
def _normed(x, gain, size, eps):
    return x * tl.rsqrt(tl.sum(x * x) / size + eps) * gain.to(tl.float32)


@triton.jit(do_not_specialize=["part_stride"])
def _add_norm(
    x, y, post, weight, x_out, n_out, size, eps, part_stride,
    PARTS: tl.constexpr, HAS_POST: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    at = tl.program_id(0).to(tl.int64) * size + columns
    start_next(PDL)
    gain = tl.load(weight + columns, mask=mask, other=0.0)
    if HAS_POST:
        post_gain = tl.load(post + columns, mask=mask, other=0.0)
    wait(PDL)
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 0:
        added = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            added += tl.load(y + part * part_stride + at, mask=mask, other=0.0)
        if PARTS > 1:
            added = added.to(x.dtype.element_ty).to(tl.float32)  # round as one product would
        if HAS_POST:
            added = _normed(added, post_gain, size, eps)
        # Round before the norm, as the reference does: the rounded sum is the next layer's x.
        stored = (total + added).to(x_out.dtype.element_ty)
        tl.store(x_out + at, stored, mask=mask)
        total = stored.to(tl.float32)
    normed = _normed(total, gain, size, eps)
    tl.store(n_out + at, normed.to(n_out.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, pdl: bool = False) -> Tensor:
    """
    Compute `reference.rms_norm`.
    """
    return _launch(x, None, None, weight, eps, pdl)[1]


def add_rms_norm(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, post: Tensor | None, *, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """
    Compute `reference.add_rms_norm`; y is (t, n), or (parts, t, n) fp32, whose parts are summed.
    """
    return _launch(x, y, post, weight, eps, pdl)


def _launch(
    x: Tensor, y: Tensor | None, post: Tensor | None, weight: Tensor, eps: float, pdl: bool
) -> tuple[Tensor, Tensor]:
    tokens, size = x.shape
    summed = x if y is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    parts = 0 if y is None else y.shape[0] if y.dim() == 3 else 1
    if tokens:
        block = triton.next_power_of_2(size)
        _add_norm[(tokens,)](
            x, x if y is None else y, weight if post is None else post, weight, summed, normed,
            size, eps, tokens * size, PARTS=parts, HAS_POST=post is not None, BLOCK=block, PDL=pdl,
            num_warps=8 if block >= 4096 else 4, **options(pdl),
        )  # fmt: skip
    return summed, normed
