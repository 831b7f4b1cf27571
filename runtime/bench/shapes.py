"""
The shapes of the timed models: their config.json, and the scale of their workload.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class ModelShape:
    """
    The shape of a timed model; its weights are random.

    Attributes:
        document: The config.json that our engine and the peers read.
        context_tokens: Context limit of the engines, below the model's.
        shrink: Divides the token counts of each line.
    """

    name: str
    document: Mapping[str, Any]
    context_tokens: int
    shrink: int

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig.from_json(self.document, self.name)


_GLM = {
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "hidden_act": "silu",
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}

SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        # Source: the defaults of GlmConfig in transformers 5.23.
        "glm-4-9b": ModelShape(
            "glm-4-9b",
            _GLM
            | {
                "num_hidden_layers": 40,
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "intermediate_size": 13696,
                "vocab_size": 151552,
                "max_position_embeddings": 32768,
            },
            context_tokens=8192,
            shrink=1,
        ),
        "tiny": ModelShape(
            "tiny",
            _GLM
            | {
                "num_hidden_layers": 2,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "intermediate_size": 96,
                "vocab_size": 512,
                "max_position_embeddings": 1024,
            },
            context_tokens=512,
            shrink=16,
        ),
    }
)
