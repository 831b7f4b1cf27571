"""
Rotary position embedding: the frequency of each pair of values in a head.
"""

import math

import torch
from torch import Tensor

from runtime.models.config import DecoderConfig, LinearScaling


def inverse_frequencies(config: DecoderConfig) -> Tensor:
    """
    Return each pair's rotation per position, in radians: (rotary / 2,) fp32.

    Source: transformers `modeling_rope_utils`; tests/unit/runtime/models compares the two.
    """
    steps = torch.arange(0, config.rotary, 2, dtype=torch.float32) / config.rotary
    plain = 1.0 / config.rope_theta**steps
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    scaled = plain / scaling.factor
    if isinstance(scaling, LinearScaling):
        return scaled
    turns = scaling.trained_tokens * plain / (2 * math.pi)
    fast = ((turns - scaling.slow) / (scaling.fast - scaling.slow)).clamp(0.0, 1.0)
    return (1 - fast) * scaled + fast * plain


def position_rows(config: DecoderConfig) -> tuple[int, ...]:
    """
    Return, for each pair, which of M-RoPE's positions (time, height, width) rotates it.

    All are 0 for plain RoPE.
    """
    if config.mrope_section is None:
        return (0,) * (config.rotary // 2)
    return tuple(row % 3 for row, count in enumerate(config.mrope_section) for _ in range(count))
