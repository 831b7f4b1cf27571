"""
The operations of a decoder on a GPU.

For few tokens, reading the weights dominates the cost: Triton.  For many tokens, the arithmetic
dominates: cuBLAS, or Triton if the product is fused with an operation that cuBLAS lacks.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels import gated, norm
from runtime.kernels.launch import has_pdl
from runtime.kernels.linear import TileShape, choose_shape, small_batch_gemm, swiglu, widen
from runtime.kernels.ops import Weight
from runtime.kernels.quantize import Quantized


class FusedOps:
    """
    Implements `ops.Ops` with Triton and cuBLAS.

    Attributes:
        pdl: Whether kernels use programmatic dependent launch; see `launch`.
    """

    def __init__(self, device: torch.device) -> None:
        self.pdl = has_pdl(device)
        self._multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps, pdl=self.pdl)

    def add_rms_norm(
        self, x: Tensor, y: Tensor, weight: Tensor, eps: float, post: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return norm.add_rms_norm(x, y, weight, eps, post, pdl=self.pdl)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        shape = choose_shape(x, weight, is_gated=False, may_split=False)
        if shape is None:
            return _linear_with_slack(x, _dense(weight, x), bias)
        return self._small_batch(x, weight, bias, shape=shape)

    def project(
        self, x: Tensor, y: Tensor, weight: Weight, gain: Tensor, eps: float, post: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shape = choose_shape(y, weight, is_gated=False, may_split=True)
        if shape is not None:  # the product may come in parts; the norm sums them
            return self.add_rms_norm(x, self._small_batch(y, weight, shape=shape), gain, eps, post)
        if post is not None:
            return self.add_rms_norm(x, functional.linear(y, _dense(weight, y)), gain, eps, post)
        x.addmm_(y, _dense(weight, y).t())  # cuBLAS adds the residual for free
        return x, self.rms_norm(x, gain, eps)

    def gated(self, x: Tensor, gate_up: Weight) -> Tensor:
        shape = choose_shape(x, gate_up, is_gated=True, may_split=False)
        if shape is None:
            weight = _dense(gate_up, x)
            if self.pdl and len(x) >= gated.LEAST_TOKENS and gated.can_gate(x, weight):
                return gated.gated(x, weight, multiprocessors=self._multiprocessors, pdl=True)
            product = functional.linear(x, weight)
            del weight  # frees a widened copy
            return swiglu(product, pdl=self.pdl)
        return self._small_batch(x, gate_up, is_gated=True, shape=shape)

    def logits(self, x: Tensor, weight: Weight) -> Tensor:
        shape = choose_shape(x, weight, is_gated=False, may_split=False)
        if shape is not None:
            return self._small_batch(x, weight, out_dtype=torch.float32, shape=shape)
        if x.dtype == torch.float32:
            return functional.linear(x, _dense(weight, x))
        return torch.mm(x, _dense(weight, x).t(), out_dtype=torch.float32)

    def _small_batch(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        shape: TileShape,
        is_gated: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        return small_batch_gemm(
            x,
            weight,
            bias,
            shape=shape,
            is_gated=is_gated,
            out_dtype=out_dtype,
            multiprocessors=self._multiprocessors,
            pdl=self.pdl,
        )


def _linear_with_slack(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    Compute `functional.linear` into storage with an eighth more rows: `prefill` reads past the end.
    """
    m, n = x.shape[0], weight.shape[0]
    storage = torch.empty((m + m // 8 + 8, n), dtype=x.dtype, device=x.device)
    if bias is None:
        return torch.mm(x, weight.t(), out=storage[:m])
    return torch.addmm(bias, x, weight.t(), out=storage[:m])


def _dense(weight: Weight, x: Tensor) -> Tensor:
    return widen(weight, x.dtype) if isinstance(weight, Quantized) else weight
