import pytest
import torch

from runtime.models.config import DecoderConfig
from runtime.models.families import FAMILIES
from runtime.models.shard import Shard
from runtime.models.weights import TensorSlice, gather, scatter, sources
from tests.unit.runtime.builders import make_config_document, make_model


def make(name, **changes):
    changes = {"attention_bias": False, "rope_scaling": {"mrope_section": [1, 2, 1]}} | changes
    return make_model(architectures=[name], **changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_gather_inverts_scatter(name):
    """
    Weights survive a round trip through a file.
    """
    model = make(name)
    state = dict(model.state_dict())
    tensors = scatter(model.config, state)
    again = dict(gather(model.config, tensors.__getitem__))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("name", FAMILIES)
def test_sources_have_the_shapes_of_the_decoder(name):
    """
    Parameter by parameter, whole and in shards.
    """
    model = make(name)
    shapes = {name: source.shape for name, source in sources(model.config).items()}
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_halves_become_neighbours():
    """
    The two values of a pair become neighbours in each head; unrotated values keep their place.
    """
    piece = TensorSlice("q", (16,), rows=range(16), pairing=(8, 6))
    rows = torch.arange(16)
    assert piece.arrange(rows).tolist()[:8] == [0, 3, 1, 4, 2, 5, 6, 7]
    assert piece.arrange(rows).tolist()[8:] == [8, 11, 9, 12, 10, 13, 14, 15]
    assert torch.equal(piece.restore(piece.arrange(rows)), rows)


def test_only_queries_and_keys_are_reordered():
    """
    Values and all other tensors keep the file's order, and so does all of a GLM.
    """

    def arranged(name):
        pieces = [p for source in sources(make(name).config).values() for p in source.pieces]
        return {piece.name.split(".")[-2] for piece in pieces if piece.pairing}

    assert arranged("LlamaForCausalLM") == {"q_proj", "k_proj"}
    assert arranged("Qwen3ForCausalLM") == {"q_proj", "k_proj", "q_norm", "k_norm"}
    assert arranged("Glm4ForCausalLM") == set()


@pytest.mark.parametrize("name", ["GlmForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("size", [2, 4])
def test_shards_are_parts_of_the_whole(name, size):
    """
    Heads, the MLP's inner values and the head's vocabulary are divided; the rest is replicated.
    """
    model = make(name)
    config = model.config
    tensors = scatter(config, model.state_dict())
    whole = dict(gather(config, tensors.__getitem__))
    parts = [dict(gather(config, tensors.__getitem__, Shard(rank, size))) for rank in range(size)]
    for name, tensor in whole.items():
        shard_parts = [part[name] for part in parts]
        match name.split(".")[-1]:
            case "head":
                joined = torch.cat(shard_parts)
            case "out" | "down":
                joined = torch.cat(shard_parts, dim=1)
            case "gate_up":
                halves = [part.chunk(2) for part in shard_parts]
                joined = torch.cat([*(gate for gate, _ in halves), *(up for _, up in halves)])
            case "qkv" | "qkv_bias":
                joined = join_heads(shard_parts, config, size)
            case _:
                assert all(torch.equal(part, tensor) for part in shard_parts), name
                continue
        assert torch.equal(joined, tensor), name


def join_heads(shard_parts, config, size):
    heads, kv_heads = config.heads // size, max(config.kv_heads // size, 1)
    sizes = [count * config.head_dim for count in (heads, kv_heads, kv_heads)]
    q, k, v = zip(*(part.split(sizes) for part in shard_parts), strict=True)
    once = slice(None, None, max(size // config.kv_heads, 1))  # each KV head is there so often
    return torch.cat([*q, *k[once], *v[once]])


def test_tensor_names_follow_the_family():
    """
    GLM has one tensor for gate and up; a vision model has a longer prefix.
    """

    def names(name):
        document = make_config_document(
            architectures=[name], attention_bias=False, rope_scaling={"mrope_section": [1, 2, 1]}
        )
        parameter_sources = sources(DecoderConfig.from_json(document, "config.json")).values()
        return {piece.name for source in parameter_sources for piece in source.pieces}

    assert "model.layers.1.mlp.gate_up_proj.weight" in names("GlmForCausalLM")
    assert "model.layers.1.mlp.gate_proj.weight" in names("LlamaForCausalLM")
    deep = names("Glm4vForConditionalGeneration")
    assert "model.language_model.layers.0.post_mlp_layernorm.weight" in deep
    assert "lm_head.weight" in deep
