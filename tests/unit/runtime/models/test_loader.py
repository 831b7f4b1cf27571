import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import ModelError
from runtime.models.loader import load_model, read_config
from runtime.models.weights import gather, scatter
from tests.unit.runtime.builders import make_model, write_model


def load(folder, **changes):
    return load_model(folder, **{"device": "cpu", "precision": "fp32"} | changes)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def rewrite_config(folder, **changes):
    document = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in document.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def test_weights_survive_the_way_to_a_file_and_back():
    """
    `scatter` and `gather` are each other's inverse.
    """
    model = make_model()
    state = dict(model.state_dict())
    tensors = scatter(model.config, state)
    again = dict(gather(model.config, tensors.__getitem__))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_precision_is_what_was_asked_for(folder):
    """
    Every weight is turned into the precision of the config.
    """
    model, _ = load(folder, precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_older_config_files_are_understood(folder):
    """
    transformers 4 wrote rope_theta and partial_rotary_factor at the top.
    """
    rewrite_config(folder, rope_theta=123.0, partial_rotary_factor=0.25)
    config = read_config(folder)
    assert (config.rope_theta, config.rotary) == (123.0, 2)

    parameters = {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.5}
    rewrite_config(folder, rope_parameters=parameters)
    config = read_config(folder)
    assert (config.rope_theta, config.rotary) == (7.0, 4)


def test_the_generation_config_knows_the_ends_better(folder):
    """
    Its end tokens take the place of those in config.json.
    """
    rewrite_config(folder, eos_token_id=5)
    assert read_config(folder).ends == {5}
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert read_config(folder).ends == {7, 8}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ("architectures", "Llama", "Glm4ForCausalLM")),
        ({"architectures": ...}, ("architectures", "missing")),
        ({"hidden_size": ...}, ("hidden_size", "missing")),
        ({"rope_parameters": {"rope_type": "yarn"}}, ("rope_type", "yarn")),
        ({"hidden_act": "gelu"}, ("hidden_act", "gelu")),
        ({"intermediate_size": 40}, ("gate_up_proj", "[96, 32]", "[80, 32]")),
        ({"num_hidden_layers": 3}, ("layers.2", "is missing")),
        ({"num_hidden_layers": 1}, ("layers.1", "not part of this architecture")),
        ({"architectures": ["GlmForCausalLM"]}, ("post_mlp_layernorm", "not part")),
    ],
)
def test_what_can_not_be_served_is_named(folder, changes, words):
    """
    The error says which key or tensor, and what was found.
    """
    load(folder)  # negative control
    rewrite_config(folder, **changes)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_truncated_file_is_named(folder):
    """
    Weights that are shorter than they say are not served.
    """
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: can't be read"):
        load(folder)


def test_a_missing_shard_is_named(folder):
    """
    An index that names a file which is not there.
    """
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        load(folder)


def test_a_tied_model_may_repeat_its_embedding(tmp_path):
    """
    Some files carry lm_head.weight though the config says that it is the embedding.
    """
    folder = write_model(tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder)[0].head is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named(folder):
    """
    device: cuda on a machine without one is the config's fault.
    """
    with pytest.raises(ModelError, match="device: cuda"):
        load(folder, device="cuda")
