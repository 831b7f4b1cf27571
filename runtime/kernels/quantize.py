"""
Weights in 8 or 4 bits: fewer bytes to read, the same arithmetic.  Activations stay as they are.

Symmetric: a value is a whole number times its scale, so that 0 stays 0.  A value that is not
finite makes its scale not finite, and so the weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.contract.errors import ModelError

GROUP = 128  # values of a row that share a scale, in 4 bits
INT8_TOP, INT4_TOP = 127, 7
INT4_ZERO = 8  # the nibble that stands for 0


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """
    A weight (n, k).

    Attributes:
        weight: 8 bits: (n, k) int8.  4 bits: (n, k / 2) uint8, two values a byte, the even column
            in the low half, each INT4_ZERO more than it stands for.
        scale: 8 bits: (n,), a row each.  4 bits: (n, k / GROUP).  Any float type.
        bits: 8 or 4.
    """

    weight: Tensor
    scale: Tensor
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weight.shape
        return rows, columns * 8 // self.bits


def empty_quantized(
    rows: int, columns: int, bits: int, *, scale: torch.dtype, device: torch.device | str
) -> Quantized:
    """
    Return an empty weight (rows, columns), to be filled by the loader.

    Args:
        scale: Type of the scales; fp32 for 8 bits, a half one for 4, where they are many.

    Raises:
        ModelError: 4 bits, and a row is not a multiple of GROUP.
    """
    if bits == 8:
        weight = torch.empty((rows, columns), dtype=torch.int8, device=device)
        return Quantized(weight, torch.empty(rows, dtype=scale, device=device), bits)
    _check_groups(columns)
    weight = torch.empty((rows, columns // 2), dtype=torch.uint8, device=device)
    scales = torch.empty((rows, columns // GROUP), dtype=scale, device=device)
    return Quantized(weight, scales, bits)


def quantize(weight: Tensor, bits: int, scale: torch.dtype) -> Quantized:
    """
    Round *weight* (n, k) to 8 or 4 *bits*; no value moves by more than half of its scale.

    Args:
        scale: Type of the scales.  Values are rounded to multiples of what is stored.

    Raises:
        ModelError: 4 bits, and a row is not a multiple of GROUP.
    """
    if bits == 8:
        rounded, scales = _round(weight.float(), INT8_TOP, scale)
        return Quantized(rounded.to(torch.int8), scales[:, 0], bits)
    _check_groups(weight.shape[1])
    groups = weight.float().reshape(len(weight), -1, GROUP)
    rounded, scales = _round(groups, INT4_TOP, scale)
    nibbles = (rounded + INT4_ZERO).to(torch.uint8).flatten(1)
    return Quantized(nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scales[..., 0], bits)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """
    Return the weight (n, k) of *quantized*.
    """
    weight, scale = quantized.weight, quantized.scale.float()[..., None]
    if quantized.bits == 8:
        return (weight.float() * scale).to(dtype)
    nibbles = torch.stack((weight & 15, weight >> 4), dim=-1)
    groups = nibbles.view(len(weight), -1, GROUP).float() - INT4_ZERO
    return (groups * scale).flatten(1).to(dtype)


def _round(weight: Tensor, top: int, scale: torch.dtype) -> tuple[Tensor, Tensor]:
    # Never 0: a row of zeros is 0 times any scale.
    scales = (weight.abs().amax(dim=-1, keepdim=True) / top).clamp_min(torch.finfo(scale).tiny)
    scales = scales.to(scale)
    return (weight / scales.float()).round_().clamp_(-top, top), scales


def _check_groups(columns: int) -> None:
    if columns % GROUP:
        raise ModelError(
            f"4 bits: a weight has rows of {columns} values",
            why=f"{GROUP} of them share a scale, which {columns} does not divide by",
            fix="serve it in 8 bits, or on another number of GPUs",
        )
