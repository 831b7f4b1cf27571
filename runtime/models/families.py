"""
The supported families of decoders.  Pure.

Source: configuration_*.py and modeling_*.py of glm, glm4, glm4v, llama, qwen2 and qwen3 in
transformers 5.23; tests/unit/runtime/models holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.contract.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """
    What the architecture's name says.

    Attributes:
        has_bias: Always; else as `attention_bias` says.
        head_dim, rotary_share: Where the key is absent; None: hidden / heads.
    """

    is_glm: bool = False
    is_multimodal: bool = False
    has_bias: bool = False
    has_output_norms: bool = False
    has_qk_norms: bool = False
    head_dim: int | None = None
    rotary_share: float = 1.0


FAMILIES = MappingProxyType(
    {
        "GlmForCausalLM": Family(is_glm=True, head_dim=128, rotary_share=0.5),
        "Glm4ForCausalLM": Family(
            is_glm=True, has_output_norms=True, head_dim=128, rotary_share=0.5
        ),
        "Glm4vForConditionalGeneration": Family(
            is_glm=True, is_multimodal=True, has_bias=True, has_output_norms=True
        ),
        "LlamaForCausalLM": Family(),
        "Qwen2ForCausalLM": Family(has_bias=True),
        "Qwen3ForCausalLM": Family(has_qk_norms=True, head_dim=128),
    }
)


def find_family(found: Mapping[str, Any], where: str) -> Family:
    """
    Return the family of a `config.json`.

    Raises:
        ModelError: It is none of FAMILIES.
    """
    names = found.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise ModelError(
        f"{where}: architectures: {', '.join(names) or 'missing'}",
        why=f"this runtime serves {', '.join(FAMILIES)}",
        fix="release a model of one of these architectures",
    )
