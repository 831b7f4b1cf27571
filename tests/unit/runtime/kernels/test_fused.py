"""
The operations of a GPU, in Triton's interpreter, against the reference.
"""

import pytest
import torch

from runtime.kernels.ops import TorchOps
from runtime.kernels.quantize import quantize
from tests.unit.runtime.kernels.truth import TOLERANCE, distance, make


@pytest.fixture
def ops():
    fused = pytest.importorskip("runtime.kernels.fused")
    made = fused.FusedOps.__new__(fused.FusedOps)
    made.pdl, made._multiprocessors = False, 3
    return made


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("has_post", [False, True])
@pytest.mark.parametrize("tokens", [4, 200])
def test_a_product_ends_in_the_residual_and_its_norm(ops, tokens, has_post, bits):
    """
    In parts that the norm sums, or by cuBLAS, which adds it where no norm is before that.
    """
    x, y = (make(tokens, n, dtype=torch.float16, seed=n) for n in (96, 128))
    w, gain, post = make(96, 128, seed=1), make(96, seed=2), make(96, seed=3)
    w, gain, post = (part.half() for part in (w, gain, post))
    weight = w if bits is None else quantize(w, bits, torch.float32)
    post = post if has_post else None
    wanted = TorchOps().project(x.clone(), y, weight, gain, 1e-5, post)

    found = ops.project(x, y, weight, gain, 1e-5, post)

    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < 3 * TOLERANCE[torch.float16]


def test_many_tokens_are_gated_by_the_kernel_and_others_by_cublas(ops, monkeypatch):
    """
    From `gated.LEAST_TOKENS` on, and only where programs may start early and its rows may be read.
    """
    from runtime.kernels import gated

    seen = []
    monkeypatch.setattr(gated, "gated", lambda x, w, **rest: seen.append(len(x)))
    monkeypatch.setattr("runtime.kernels.fused.swiglu", lambda product, pdl: None)
    ops.pdl = True
    for tokens, n in (
        (gated.LEAST_TOKENS - 1, 64),
        (gated.LEAST_TOKENS, 64),
        (gated.LEAST_TOKENS, 60),
    ):
        ops.gated(make(tokens, 32, dtype=torch.float16), make(2 * n, 32, dtype=torch.float16))
    assert seen == [gated.LEAST_TOKENS]
