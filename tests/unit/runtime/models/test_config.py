import pytest

from runtime.contract.errors import ModelError
from runtime.models.config import DecoderConfig, LinearScaling, Llama3Scaling
from runtime.models.families import FAMILIES
from tests.unit.runtime.builders import make_config_document


def read(**changes):
    document = make_config_document(**changes)
    kept = {key: value for key, value in document.items() if value is not ...}
    return DecoderConfig.from_json(kept, "config.json")


def read_as(name, **changes):
    return read(**{"architectures": [name], "attention_bias": ...} | changes)


def test_the_family_decides_what_no_key_states():
    """
    Norms, biases and the order of pairs follow from the architecture's name.
    """
    configs = {name: read_as(name, head_dim=64) for name in FAMILIES}

    def those(key):
        return {name for name, config in configs.items() if getattr(config, key)}

    glm = {"GlmForCausalLM", "Glm4ForCausalLM", "Glm4vForConditionalGeneration"}
    assert those("is_interleaved") == those("is_gate_up_joined") == glm
    assert those("has_output_norms") == glm - {"GlmForCausalLM"}
    assert those("has_qk_norms") == {"Qwen3ForCausalLM"}
    assert those("has_bias") == glm | {"Qwen2ForCausalLM"}
    assert those("mrope_section") == those("ignored") == {"Glm4vForConditionalGeneration"}
    assert {name for name in configs if configs[name].rotary == 32} == glm - those("ignored")


def test_the_bias_of_a_glm_is_in_its_config():
    """
    GLM has models with and without one; Qwen2 always has one, and ignores the key.
    """
    assert not read_as("Glm4ForCausalLM", attention_bias=False).has_bias
    assert read_as("Glm4ForCausalLM", attention_bias=True).has_bias


def test_an_absent_head_dim_has_the_default_of_its_family():
    """
    A share of the hidden size, or 128; null means absent.
    """
    assert read_as("LlamaForCausalLM", head_dim=...).head_dim == 8
    assert read_as("Qwen2ForCausalLM", head_dim=None).head_dim == 8
    assert read_as("Qwen3ForCausalLM", head_dim=...).head_dim == 128
    assert read_as("GlmForCausalLM", head_dim=None).head_dim == 128


def test_old_models_have_as_many_kv_heads_as_heads():
    """
    Llama 1 has no num_key_value_heads.
    """
    assert read_as("LlamaForCausalLM", num_key_value_heads=...).kv_heads == 4


def test_both_spellings_of_rotary_keys_are_read():
    """
    transformers 4 writes rope_theta and rope_scaling; transformers 5 writes rope_parameters.
    """
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = Llama3Scaling(factor=8.0, slow=1.0, fast=4.0, trained_tokens=8192)
    for changes in (
        {"rope_theta": 5e5, "rope_scaling": llama3 | {"rope_type": "llama3"}},
        {"rope_theta": 5e5, "rope_scaling": llama3 | {"type": "llama3"}},
        {"rope_parameters": llama3 | {"rope_type": "llama3", "rope_theta": 5e5}},
    ):
        config = read_as("LlamaForCausalLM", **changes)
        assert (config.rope_theta, config.rope_scaling) == (5e5, expected)

    config = read(rope_theta=123.0, partial_rotary_factor=0.25)
    assert (config.rope_theta, config.rotary) == (123.0, 2)
    config = read(rope_parameters={"rope_theta": 7.0, "partial_rotary_factor": 0.75})
    assert (config.rope_theta, config.rotary) == (7.0, 6)
    config = read(rope_scaling={"type": "linear", "factor": 2})
    assert (config.rope_theta, config.rope_scaling) == (10000.0, LinearScaling(2))


@pytest.mark.parametrize("tied", [{"tie_word_embeddings": True}, {}])
def test_the_language_model_of_a_vision_model_is_read(tied):
    """
    It is under text_config; either level may say that the embedding is tied.
    """
    rope = {"mrope_section": [16, 24, 24]}
    text = make_config_document(architectures=..., head_dim=128, hidden_size=512, rope_scaling=rope)
    text = {key: value for key, value in text.items() if value is not ...} | tied
    document = {"architectures": ["Glm4vForConditionalGeneration"], "text_config": text, **tied}
    config = DecoderConfig.from_json(
        document | {"vision_config": {"hidden_size": 7}}, "config.json"
    )

    assert (config.hidden, config.rotary, config.prefix) == (512, 128, "model.language_model.")
    assert config.is_tied == bool(tied)


@pytest.mark.parametrize(
    ("ids", "expected"), [(None, set()), (0, {0}), (5, {5}), ([7, 8], {7, 8}), ([], set())]
)
def test_there_may_be_several_stop_tokens(ids, expected):
    """
    A number, a list, or none.
    """
    assert read(eos_token_id=ids).stop_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MistralForCausalLM"]}, ("architectures", "Mistral", "LlamaForCausal")),
        ({"architectures": ...}, ("architectures", "missing")),
        ({"hidden_size": ...}, ("hidden_size", "missing")),
        ({"num_hidden_layers": "lots"}, ("num_hidden_layers", "'lots'", "number")),
        ({"num_hidden_layers": 2.5}, ("num_hidden_layers", "2.5", "whole")),
        ({"vocab_size": 0}, ("vocab_size", "0")),
        ({"rms_norm_eps": True}, ("rms_norm_eps", "True")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads", "3", "4 query heads")),
        ({"partial_rotary_factor": 0.4}, ("partial_rotary_factor", "3 of", "pairs")),
        ({"rope_parameters": {"rope_type": "yarn"}}, ("rope_type", "yarn", "'llama3'")),
        ({"rope_parameters": {"rope_type": "linear"}}, ("factor", "missing")),
        ({"hidden_act": "gelu"}, ("hidden_act", "gelu", "silu")),
        ({"mlp_bias": True}, ("mlp_bias", "True")),
        ({"use_sliding_window": True}, ("use_sliding_window", "True")),
        (
            {"quantization_config": {"quant_method": "awq"}},
            ("quantization_config", "awq", "set weights: int8"),
        ),
        ({"architectures": "Glm4ForCausalLM"}, ("architectures: 'Glm4ForCausalLM'",)),
        ({"architectures": ["x" * 9999]}, ("architectures", "xxx")),
        ({"tie_word_embeddings": "false"}, ("tie_word_embeddings", "true or false")),
        ({"attention_bias": "no"}, ("attention_bias", "true or false")),
        ({"rope_theta": 10**350}, ("rope_theta", "float")),
        ({"rms_norm_eps": 10**350}, ("rms_norm_eps", "float")),
        ({"rope_scaling": {"type": "linear", "factor": 10**350}}, ("factor", "float")),
        ({"rope_scaling": {"type": "dynamic"}}, ("type: 'dynamic'",)),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 1.0,
                }
            },
            ("high_freq_factor: 1.0", "4.0"),
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            ("rope_parameters", "rotates all layers alike"),
        ),
        ({"partial_rotary_factor": 3.0}, ("partial_rotary_factor: 3.0", "only 8 values")),
        ({"head_dim": 3}, ("head_dim: 3", "1 of a head's 3 values")),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 1}, ("vocab_size", "a matrix would")),
        (
            {"num_attention_heads": 2**30, "num_key_value_heads": 1, "head_dim": 2**20},
            ("num_attention_heads", "a matrix would"),
        ),
    ],
)
def test_an_unsupported_value_is_named(changes, words):
    """
    The error has the key and its value.
    """
    with pytest.raises(ModelError) as caught:
        read(**changes)
    assert all(word in str(caught.value) for word in ("config.json", *words)), str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_vision_model_may_say_above_its_text_that_it_is_quantized():
    """
    transformers writes it there.
    """
    text = make_config_document(head_dim=128, hidden_size=512)
    document = {"architectures": ["Glm4vForConditionalGeneration"], "text_config": text}
    text["rope_scaling"] = {"mrope_section": [16, 24, 24]}
    DecoderConfig.from_json(document, "config.json")  # negative control
    with pytest.raises(ModelError, match="quantization_config"):
        DecoderConfig.from_json(
            document | {"quantization_config": {"quant_method": "fp8"}}, "config.json"
        )


@pytest.mark.parametrize("section", [[-8, 12, -2], "abc", [1.0, 1.0], [10**12, 2]])
def test_a_section_of_mrope_is_a_list_of_whole_numbers(section):
    """
    That their sum is right is not enough.
    """
    with pytest.raises(ModelError, match="mrope_section"):
        read_as("Glm4vForConditionalGeneration", rope_scaling={"mrope_section": section})


def test_a_llama_with_a_bias_is_refused():
    """
    It would also have a bias on the attention output, which this decoder lacks.
    """
    read_as("LlamaForCausalLM", attention_bias=False)  # negative control
    for name in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        with pytest.raises(ModelError, match="attention_bias: True"):
            read_as(name, attention_bias=True)


def test_mrope_sections_must_cover_all_pairs():
    """
    M-RoPE's sections count pairs.
    """
    with pytest.raises(ModelError, match="mrope_section"):
        read_as(
            "Glm4vForConditionalGeneration",
            rope_scaling={"mrope_section": [8, 12, 12]},
            head_dim=8,
        )
