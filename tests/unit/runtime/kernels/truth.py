"""
Helpers of the kernels' tests: random inputs, and the distance from the result in fp64.
"""

import random

import torch

from runtime.kernels.cache import PagedCache, make_cache

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the whole output: rounding of the type, and of sums in fp32.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
TYPES = tuple(TOLERANCE)


def make(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed * 1000 + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def distance(actual, truth):
    """
    Return ‖found - truth‖ / ‖truth‖; NaN is far from everything.
    """
    actual, truth = actual.double(), truth.double()
    far = ((actual - truth).norm() / truth.norm()).item()
    return far if far == far else float("inf")


def make_filled_cache(lengths, *, kv_heads, dim, page_tokens, dtype, seed=0, layers=2):
    """
    Return a cache with NaN outside all rows, and the pages of the rows in random order.
    """
    rng = random.Random(seed)
    row_pages = max(-(-length // page_tokens) for length in lengths) + 1
    pages = 1 + row_pages * len(lengths)
    cache: PagedCache = make_cache(
        layers=layers, pages=pages, kv_heads=kv_heads, page_tokens=page_tokens, head_dim=dim,
        slots=len(lengths) + 1, row_pages=row_pages, dtype=dtype, device=DEVICE,
    )  # fmt: skip
    if dtype.itemsize > 1:
        cache.keys.fill_(float("nan"))
        cache.values.fill_(float("nan"))
    if cache.key_scales is not None and cache.value_scales is not None:
        cache.key_scales.fill_(float("nan"))
        cache.value_scales.fill_(float("nan"))
    order = list(range(1, pages))
    rng.shuffle(order)
    for slot in range(len(lengths)):
        mine = order[slot * row_pages : (slot + 1) * row_pages]
        cache.table[slot] = torch.tensor(mine, dtype=torch.int32)
    return cache
