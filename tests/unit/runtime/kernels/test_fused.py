"""
The GPU's operations in Triton's interpreter, compared with the reference.
"""

import pytest
import torch

from runtime.kernels.ops import TorchOps
from runtime.kernels.quantize import quantize
from tests.unit.runtime.kernels.truth import TOLERANCE, distance, make


@pytest.fixture
def ops():
    fused = pytest.importorskip("runtime.kernels.fused")
    ops = fused.FusedOps.__new__(fused.FusedOps)
    ops.pdl, ops._multiprocessors = False, 3
    return ops


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("has_post", [False, True])
@pytest.mark.parametrize("tokens", [4, 200])
def test_project_adds_the_residual_and_norms_it(ops, tokens, has_post, bits):
    """
    The norm sums split products; cuBLAS adds the residual itself if there is no post norm.
    """
    x, y = (make(tokens, n, dtype=torch.float16, seed=n) for n in (96, 128))
    w, gain, post = make(96, 128, seed=1), make(96, seed=2), make(96, seed=3)
    w, gain, post = (part.half() for part in (w, gain, post))
    weight = w if bits is None else quantize(w, bits, torch.float32)
    post = post if has_post else None
    expected = TorchOps().project(x.clone(), y, weight, gain, 1e-5, post)

    actual = ops.project(x, y, weight, gain, 1e-5, post)

    for one, other in zip(actual, expected, strict=True):
        assert distance(one, other) < 3 * TOLERANCE[torch.float16]


def test_the_gated_kernel_is_used_for_many_tokens_only(ops, monkeypatch):
    """
    From `gated.LEAST_TOKENS` on, with PDL, and only for weights that the kernel supports.
    """
    from runtime.kernels import gated

    gated_sizes = []
    monkeypatch.setattr(gated, "gated", lambda x, w, **rest: gated_sizes.append(len(x)))
    monkeypatch.setattr("runtime.kernels.fused.swiglu", lambda product, pdl: None)
    ops.pdl = True
    for tokens, n in (
        (gated.LEAST_TOKENS - 1, 64),
        (gated.LEAST_TOKENS, 64),
        (gated.LEAST_TOKENS, 60),
    ):
        ops.gated(make(tokens, 32, dtype=torch.float16), make(2 * n, 32, dtype=torch.float16))
    assert gated_sizes == [gated.LEAST_TOKENS]
