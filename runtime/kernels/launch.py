"""
What all Triton kernels share: programmatic dependent launch, and prefetch into the L2 cache.

On Hopper a kernel that was launched "programmatically" starts while the one before it still runs:
it may read what no kernel writes, such as weights, or what was written before the kernel ahead of
the first such one of the step, and must call `wait` before anything else.
Source: PTX ISA, "griddepcontrol" and "cp.async.bulk.prefetch".
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


INTERPRETED = tl.constexpr(IS_INTERPRETED)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """
    Return acc + a @ b, summed in fp32.
    """
    if INTERPRETED:  # whose product takes the bits of a bf16 for a number
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def start_next(PDL: tl.constexpr):
    """
    Let the next kernel start; the programs of this one are all at work by then.
    """
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """
    Wait until the kernels before have written all.
    """
    if PDL:
        gdc_wait()


@triton.jit
def prefetch(pointers, ASM: tl.constexpr):
    """
    Have the L2 cache read ahead from each of the aligned *pointers*; see `prefetch_asm`.
    """
    tl.inline_asm_elementwise(ASM, "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1)


def prefetch_asm(size_bytes: int) -> str:
    """
    Return the instruction that reads *size_bytes*, a multiple of 16, ahead.
    """
    return f"cp.async.bulk.prefetch.L2.global [$1], {size_bytes}; // $0"


def has_pdl(device: torch.device) -> bool:
    return not IS_INTERPRETED and torch.cuda.get_device_capability(device) >= (9, 0)


def options(pdl: bool) -> dict[str, Any]:
    """
    Return what a launch needs for `wait` to mean something.
    """
    return {"launch_pdl": True} if pdl else {}
