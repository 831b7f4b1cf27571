import pytest
import torch
from transformers import Glm4vTextConfig, GlmConfig, LlamaConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.glm4v.modeling_glm4v import Glm4vTextRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from runtime.models.config import DecoderConfig
from runtime.models.rotary import inverse_frequencies, position_rows
from tests.unit.runtime.builders import make_config_document

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SIZES = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 131072}


def read(name, **changes):
    changes = {"head_dim": 128, "attention_bias": False} | SIZES | changes
    document = make_config_document(architectures=[name], **changes)
    return DecoderConfig.from_json(document, "config.json")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        LLAMA3 | {"low_freq_factor": 2.0, "original_max_position_embeddings": 300},
    ],
)
def test_frequencies_match_the_reference(rope):
    """
    For whole heads, with each supported scaling.
    """
    rope = rope | {"rope_theta": 5e5}
    config = LlamaConfig(rope_parameters=dict(rope), **SIZES)
    expected = LlamaRotaryEmbedding(config).inv_freq
    actual = inverse_frequencies(read("LlamaForCausalLM", rope_parameters=rope))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_a_partly_rotated_head_has_its_own_frequencies():
    """
    GLM rotates half of each head.
    """
    expected = GlmRotaryEmbedding(GlmConfig(head_dim=128, **SIZES)).inv_freq
    actual = inverse_frequencies(read("GlmForCausalLM"))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_each_pair_uses_the_position_of_the_reference():
    """
    The reference composes the row numbers themselves.
    """
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
    rope["partial_rotary_factor"] = 0.5
    reference = Glm4vTextRotaryEmbedding(Glm4vTextConfig(rope_parameters=dict(rope), **SIZES))
    rows = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 32)
    expected = reference.recomposition_frequencies(rows)[0, 0, ::2]

    config = read("Glm4vForConditionalGeneration", rope_parameters=rope)
    assert position_rows(config) == tuple(expected.int().tolist())
    torch.testing.assert_close(inverse_frequencies(config), reference.inv_freq, rtol=1e-6, atol=0)


def test_without_sections_there_is_one_position():
    """
    Row 0 for every pair.
    """
    assert position_rows(read("GlmForCausalLM")) == (0,) * 32
