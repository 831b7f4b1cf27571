"""
Helpers of all Triton kernels: programmatic dependent launch, and prefetch into the L2 cache.

On Hopper, a kernel with programmatic dependent launch (PDL) starts while the previous kernel still
runs.  Before it calls `wait` it may read only data that no kernel of the step writes: weights, and
inputs that were written before the step's first PDL kernel was launched.
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
    if INTERPRETED:  # its dot reads the bits of a bf16 as an integer
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def start_next(PDL: tl.constexpr):
    """
    Let the next kernel start, once all programs of this one have started.
    """
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """
    Wait until all earlier kernels have finished their writes.
    """
    if PDL:
        gdc_wait()


@triton.jit
def prefetch(pointers, ASM: tl.constexpr):
    """
    Prefetch from each of the aligned *pointers* into the L2 cache; see `prefetch_asm`.
    """
    tl.inline_asm_elementwise(ASM, "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1)


def prefetch_asm(size_bytes: int) -> str:
    """
    Return the PTX instruction that prefetches *size_bytes*, a multiple of 16.
    """
    return f"cp.async.bulk.prefetch.L2.global [$1], {size_bytes}; // $0"


def has_pdl(device: torch.device) -> bool:
    """
    Return whether *device* supports programmatic dependent launch.
    """
    return not IS_INTERPRETED and torch.cuda.get_device_capability(device) >= (9, 0)


def options(pdl: bool) -> dict[str, Any]:
    """
    Return the launch options that enable PDL; without them `wait` has no effect.
    """
    return {"launch_pdl": True} if pdl else {}
