"""
The supported families of decoders.  Pure.

Source: configuration_*.py and modeling_*.py of glm, glm4, glm4v, llama, qwen2 and qwen3 in
transformers 5.23; tests/unit/runtime/models compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.contract.errors import ModelError

MAX_SHOWN = 200  # characters of a wrong value in an error


@dataclass(frozen=True, slots=True)
class Family:
    """
    The properties of an architecture that its config.json does not state.

    Attributes:
        has_bias: q, k and v always have a bias; otherwise `attention_bias` decides.
        head_dim: Default of the key; None: hidden / heads.
        rotary_share: Default of `partial_rotary_factor`.
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


def find_family(document: Mapping[str, Any], where: str) -> Family:
    """
    Return the family of a `config.json`.

    Raises:
        ModelError: Its architecture is not one of FAMILIES.
    """
    value = document.get("architectures")
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise ModelError(
        f"{where}: architectures: {'missing' if value is None else repr(value)[:MAX_SHOWN]}",
        why=f"this runtime serves {', '.join(FAMILIES)}",
        fix="release a model of one of these architectures",
    )
