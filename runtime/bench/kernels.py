"""
`python -m runtime.bench.kernels`: times the small-batch GEMM in every tile shape, beside cuBLAS.

The table of `runtime.kernels.linear` holds the best shapes.  Repeat the measurement for another
card.  Needs a GPU.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

COPIES = 6  # of each weight, used in turn, so that none stays in the L2 cache
ROUNDS, REPLAYS = 3, 8
BEST = 3  # shapes shown for each product


@dataclass(frozen=True, slots=True)
class Product:
    """
    A matrix product of GLM-4-9B: x (tokens, k) and a weight (n, k); gated: a weight (2n, k).
    """

    name: str
    n: int
    k: int
    is_gated: bool = False
    may_split: bool = False

    @property
    def rows(self) -> int:
        return self.n * (2 if self.is_gated else 1)


PRODUCTS = (
    Product("qkv", 4608, 4096),
    Product("out", 4096, 4096, may_split=True),
    Product("gate_up", 13696, 4096, is_gated=True),
    Product("down", 4096, 13696, may_split=True),
    Product("head", 151552, 4096),
)


def shapes(product: Product, bits: int) -> Iterator[dict[str, int]]:
    """
    Yield the arguments of `linear.TileShape` for every combination to be timed.
    """
    for programs, block_k, warps, stages, splits in itertools.product(
        (1, 2, 4), (64, 128, 256), (4, 8), (3, 4, 6), (1, 2, 4) if product.may_split else (1,)
    ):
        if bits == 4 and block_k != 128:  # a block is one quantisation group
            continue
        if product.n * splits < 8 * 132 * programs:  # fewer than eight rows a program
            continue
        yield {
            "programs_each": programs,
            "block_k": block_k,
            "warps": warps,
            "stages": stages,
            "splits": splits,
        }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="runtime.bench.kernels", description=__doc__)
    parser.add_argument("--tokens", default="1,16,32,64,128", help="batch sizes, comma-separated")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), default=16, help="of the weights")
    parser.add_argument("--jobs", type=int, default=8, help="processes that compile (default 8)")
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    for tokens in map(int, args.tokens.split(",")):
        for product in PRODUCTS:
            jobs = [(product, tokens, args.bits, shape) for shape in shapes(product, args.bits)]
            with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
                compiled = list(pool.map(_compiles, jobs))
            sys.stdout.write(f"{_line(jobs, compiled)}\n")
            sys.stdout.flush()
    return 0


Job = tuple[Product, int, int, dict[str, int]]


def _compiles(job: Job) -> bool:
    """
    Compile *job* into Triton's cache; return whether its shape fits the device.
    """
    import torch
    from triton.runtime.errors import OutOfResources

    try:
        _call(job, _weights(job, 1)[0])()
        torch.cuda.synchronize()
    except OutOfResources:
        return False
    return True


def _line(jobs: list[Job], compiled: list[bool]) -> str:
    import torch
    from torch.nn import functional

    product, tokens, bits, _ = jobs[0]
    weights = _weights(jobs[0], 1 if product.name == "head" else COPIES)
    timings = sorted(
        (_time_us([_call(job, weight) for weight in weights]), job[3].values())
        for job, fits in zip(jobs, compiled, strict=True)
        if fits
    )
    shown = "; ".join(f"{us:.1f} {','.join(map(str, shape))}" for us, shape in timings[:BEST])
    if bits == 16:
        x = torch.randn((tokens, product.k), dtype=torch.bfloat16, device="cuda")
        us = _time_us([partial(functional.linear, x, weight) for weight in weights])
        shown += f" | cuBLAS {us:.1f}"
    floor_us = product.rows * product.k * bits / 8 / 3.0e6  # at 3 TB/s
    return f"{product.name:8} {tokens:4} tokens, floor {floor_us:.1f} us: {shown}"


def _weights(job: Job, copies: int) -> list[Any]:
    import torch

    from runtime.kernels.quantize import quantize

    product, _, bits, _ = job
    weights: list[Any] = []
    for _ in range(copies):
        weight = torch.randn((product.rows, product.k), dtype=torch.bfloat16, device="cuda") * 0.02
        scale = torch.float32 if bits == 8 else torch.bfloat16
        weights.append(weight if bits == 16 else quantize(weight, bits, scale))
    return weights


def _call(job: Job, weight: Any) -> Callable[[], object]:
    import torch

    from runtime.kernels.linear import TileShape, small_batch_gemm

    product, tokens, _, shape = job
    x = torch.randn((tokens, product.k), dtype=torch.bfloat16, device="cuda")
    out = torch.float32 if product.name == "head" else None
    return lambda: small_batch_gemm(
        x, weight, is_gated=product.is_gated, out_dtype=out, shape=TileShape(**shape),
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count, pdl=True,
    )  # fmt: skip


def _time_us(calls: list[Callable[[], object]]) -> float:
    """
    Return the median time of one call, in microseconds; a CUDA graph runs all of *calls*.
    """
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / REPLAYS / len(calls))
    return float(sorted(times)[ROUNDS // 2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
