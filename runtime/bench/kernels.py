"""
`python -m runtime.bench.kernels`: times products of few tokens in every shape, beside cuBLAS.

What `runtime.kernels.linear` has in its table is the best of this, and can be measured anew on
another card.  Needs a GPU.
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

COPIES = 6  # of a weight, in turn, so that the L2 cache has none of them
ROUNDS, REPLAYS = 3, 8
BEST = 3  # shapes shown of each product


@dataclass(frozen=True, slots=True)
class Product:
    """
    A product of GLM-4-9B: (tokens, k) with a weight of (n, k), or of twice the rows, gated.
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
    Yield what `linear.TileShape` takes, in every combination worth a try.
    """
    for programs, block_k, warps, stages, splits in itertools.product(
        (1, 2, 4), (64, 128, 256), (4, 8), (3, 4, 6), (1, 2, 4) if product.may_split else (1,)
    ):
        if bits == 4 and block_k != 128:  # a group at a time
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
    Return whether the shape of *job* fits; what was compiled is in Triton's cache afterwards.
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
    found = sorted(
        (_time_us([_call(job, weight) for weight in weights]), job[3].values())
        for job, fits in zip(jobs, compiled, strict=True)
        if fits
    )
    shown = "; ".join(f"{us:.1f} {','.join(map(str, shape))}" for us, shape in found[:BEST])
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
    made = []
    for _ in range(copies):
        weight = torch.randn((product.rows, product.k), dtype=torch.bfloat16, device="cuda") * 0.02
        scale = torch.float32 if bits == 8 else torch.bfloat16
        made.append(weight if bits == 16 else quantize(weight, bits, scale))
    return made


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
    Return the median time of a call, as part of a CUDA graph of all of them.
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
