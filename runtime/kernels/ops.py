"""
The operations of a decoder, and their implementation for each device.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels import reference
from runtime.kernels.quantize import Quantized, dequantize

Weight = Tensor | Quantized


class Ops(Protocol):
    """
    The arithmetic outside attention.  x is (t, n) throughout, weights are (out, in).
    """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(
        self, x: Tensor, y: Tensor, weight: Tensor, eps: float, post: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...

    def project(
        self, x: Tensor, y: Tensor, weight: Weight, gain: Tensor, eps: float, post: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """
        Return `add_rms_norm` of x and `linear` of y; may overwrite x.
        """

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor: ...

    def gated(self, x: Tensor, gate_up: Weight) -> Tensor:
        """
        Return SwiGLU of x: silu of the product with the first half of *gate_up*, times the second.
        """

    def logits(self, x: Tensor, weight: Weight) -> Tensor:
        """
        Return `linear` in fp32.
        """


class TorchOps:
    """
    The reference implementation, in plain torch.
    """

    rms_norm = staticmethod(reference.rms_norm)
    add_rms_norm = staticmethod(reference.add_rms_norm)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, _dense(weight, x.dtype), bias)

    def project(
        self, x: Tensor, y: Tensor, weight: Weight, gain: Tensor, eps: float, post: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.add_rms_norm(x, self.linear(y, weight), gain, eps, post)

    def gated(self, x: Tensor, gate_up: Weight) -> Tensor:
        return reference.gated(self.linear(x, gate_up))

    def logits(self, x: Tensor, weight: Weight) -> Tensor:
        return self.linear(x, weight).float()


def _dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    return dequantize(weight, dtype) if isinstance(weight, Quantized) else weight


def ops_for(device: torch.device) -> Ops:
    """
    Return the fastest operations for *device*.
    """
    if device.type != "cuda":
        return TorchOps()
    from runtime.kernels.fused import FusedOps  # Triton is installed only with a GPU

    return FusedOps(device)
