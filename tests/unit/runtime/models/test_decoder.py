"""
Our decoder compared with transformers, the reference: logits of every family, in fp32.
"""

import threading

import pytest
import torch
import transformers

from runtime.models.decoder import Decoder, attend_causal
from runtime.models.loader import load_model, load_weights
from runtime.models.shard import Shard

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

WHOLE_ROTARY = {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 1.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "glm": ("Glm", {}),
    "glm-tied": ("Glm", {"tie_word_embeddings": True}),
    "glm-one-kv-head": ("Glm", {"num_key_value_heads": 1, "attention_bias": False}),
    "glm-whole-rotary": ("Glm", {"rope_parameters": WHOLE_ROTARY}),
    "glm4": ("Glm4", {}),
    "glm4-no-groups": (
        "Glm4",
        {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": False},
    ),
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "head_dim": None}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}
SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def save(reference, folder):
    """
    Give the reference norms and biases that reveal mistakes, and save it in shards.
    """
    for name, parameter in reference.named_parameters():
        if "bias" in name or "norm" in name:  # these begin as zeros and ones
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    reference.eval().save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def make_reference(name, folder):
    family, changes = SHAPES[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")
    sizes = SHAPE if family == "Qwen2" else SHAPE | {"head_dim": 8}
    reference = model(config(**sizes | changes))
    save(reference, folder)
    return reference


def make_tokens(rows, length):
    return torch.randint(1, 120, (rows, length), generator=torch.Generator().manual_seed(2))


def assert_close(found, wanted):
    assert wanted.std() > 0.5  # the comparison has something to compare
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4, error


@pytest.fixture(scope="module", params=SHAPES, ids=SHAPES)
def pair(request, tmp_path_factory):
    """
    The reference, and our decoder loaded from its files.
    """
    folder = tmp_path_factory.mktemp(request.param)
    reference = make_reference(request.param, folder)
    ours, config = load_model(folder, device="cpu", precision="fp32")
    assert config.stop_token_ids == {0}
    return reference, ours


@torch.inference_mode()
def test_logits_match_the_reference(pair):
    """
    At every position of random sequences.
    """
    reference, ours = pair
    tokens = make_tokens(3, 40)
    found = ours(tokens.flatten(), torch.arange(40).repeat(3), attend_causal(3))
    assert_close(found.view(3, 40, -1), reference(tokens).logits)


@torch.inference_mode()
def test_only_the_requested_rows_are_computed(pair):
    """
    *rows* selects among the logits, in its order.
    """
    _, ours = pair
    tokens, positions = make_tokens(2, 9).flatten(), torch.arange(9).repeat(2)
    rows = torch.tensor([17, 8])
    picked = ours(tokens, positions, attend_causal(2), rows)
    torch.testing.assert_close(picked, ours(tokens, positions, attend_causal(2))[rows])


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """
    GLM-4.1V, whose files also have a vision encoder.
    """
    torch.manual_seed(1)
    text = SHAPE | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e3,
            "partial_rotary_factor": 0.75,
            "mrope_section": [1, 1, 1],
        }
    }
    eye = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": 32,
        "patch_size": 4,
        "image_size": 16,
    }
    config = transformers.Glm4vConfig(text_config=text, vision_config=eye)
    reference = transformers.Glm4vForConditionalGeneration(config)
    folder = tmp_path_factory.mktemp("vision")
    save(reference, folder)
    ours, _ = load_model(folder, device="cpu", precision="fp32")
    return reference, ours


@torch.inference_mode()
def test_each_mrope_position_rotates_its_own_pairs(vision):
    """
    With different positions of time, height and width.
    """
    reference, ours = vision
    tokens = make_tokens(1, 30)
    positions = torch.randint(0, 60, (3, 30), generator=torch.Generator().manual_seed(3))
    wanted = reference(tokens, position_ids=positions[:, None]).logits[0]
    found = ours(tokens[0], positions, attend_causal(1))
    assert_close(found, wanted)

    wrong = ours(tokens[0], positions.flip(0), attend_causal(1))
    assert (wrong - wanted).abs().max() > 0.1  # negative control: which row is which matters


@torch.inference_mode()
def test_text_alone_needs_one_position(vision):
    """
    One position gives the result of three equal ones.
    """
    reference, ours = vision
    tokens = make_tokens(1, 30)
    found = ours(tokens[0], torch.arange(30), attend_causal(1))
    assert_close(found, reference(tokens).logits[0])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["glm", "llama", "qwen3"])
def test_shards_give_the_logits_of_the_whole_model(tmp_path, name, size):
    """
    From 2 and 4 shards; 4 shards hold each of 2 KV heads twice.
    """
    reference = make_reference(name, tmp_path)
    tokens = make_tokens(1, 20)
    logits_by_rank = run_shards(tmp_path, size, tokens[0])
    with torch.inference_mode():
        wanted = reference(tokens).logits[0]
    for logits in logits_by_rank:
        assert_close(logits, wanted)


def run_shards(folder, size, tokens):
    """
    Return the logits of each shard; the shards run in threads and exchange tensors as GPUs would.
    """
    _, config = load_model(folder, device="cpu", precision="fp32")
    barrier, parts_by_rank, logits_by_rank = (
        threading.Barrier(size, timeout=120),
        [None] * size,
        [None] * size,
    )

    def join(rank, tensor, combine):
        parts_by_rank[rank] = tensor
        barrier.wait()
        joined = combine(list(parts_by_rank))
        barrier.wait()
        return joined

    @torch.inference_mode()
    def run(rank):
        shard = Shard(rank, size)
        model = Decoder(config, shard)
        load_weights(folder, config, dict(model.named_parameters()), shard)
        model.reduce = lambda x: join(rank, x, sum)
        model.gather = lambda x: join(rank, x, lambda parts: torch.cat(parts, dim=-1))
        logits_by_rank[rank] = model(tokens, torch.arange(len(tokens)), attend_causal(1))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return logits_by_rank
