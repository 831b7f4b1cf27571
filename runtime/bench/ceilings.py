"""
Measures the device's limits: memory bandwidth and the rate of a matrix product.
"""

import time
from collections.abc import Callable

import torch

from runtime.bench.sample import Ceilings

REPEATS = 10  # the best one counts: it is a ceiling
CUDA_GROUP = 5  # calls launched together, so that launch overhead is hidden
CUDA_BYTES, CPU_BYTES = 2 << 30, 64 << 20  # larger than any cache
CUDA_SIDE, CPU_SIDE = 8192, 512


@torch.inference_mode()
def measure_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """
    Return the limits of *device*, measured in values of *dtype*.
    """
    is_cuda = device == "cuda"
    copy_gb_s, read_gb_s = _memory(is_cuda, dtype, device)
    matmul_tflop_s = _matmul(is_cuda, dtype, device)
    if is_cuda:
        torch.cuda.empty_cache()
    return Ceilings(copy_gb_s, read_gb_s, matmul_tflop_s)


def _memory(is_cuda: bool, dtype: torch.dtype, device: str) -> tuple[float, float]:
    size = (CUDA_BYTES if is_cuda else CPU_BYTES) // dtype.itemsize
    source = torch.ones(size, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), is_cuda)
    read_s = _best_s(source.view(torch.float32).sum, is_cuda)
    return 2 * source.nbytes / copy_s / 1e9, source.nbytes / read_s / 1e9


def _matmul(is_cuda: bool, dtype: torch.dtype, device: str) -> float:
    side = CUDA_SIDE if is_cuda else CPU_SIDE
    # Random values: a product of zeros draws less power and runs faster.
    a, b = (torch.randn((side, side), dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / _best_s(lambda: a @ b, is_cuda) / 1e12


def _best_s(call: Callable[[], object], is_cuda: bool) -> float:
    group = CUDA_GROUP if is_cuda else 1
    call()
    times = []
    for _ in range(REPEATS):
        _wait(is_cuda)
        started_s = time.perf_counter()
        for _ in range(group):
            call()
        _wait(is_cuda)
        times.append((time.perf_counter() - started_s) / group)
    return min(times)


def _wait(is_cuda: bool) -> None:
    if is_cuda:
        torch.cuda.synchronize()
