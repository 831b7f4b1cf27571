"""
Our decoder against transformers, the reference: logits and greedy tokens, in fp32.
"""

import random

import pytest
import torch
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

from runtime.engine.protocol import Submit
from runtime.engine.runner import DenseRunner
from runtime.engine.scheduler import Capacity, Scheduler
from runtime.models.glm import attend_causal
from runtime.models.loader import load_model

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

SHAPES = {
    "glm": (GlmForCausalLM, GlmConfig, {}),
    "glm-tied": (GlmForCausalLM, GlmConfig, {"tie_word_embeddings": True}),
    "glm-one-kv-head": (
        GlmForCausalLM,
        GlmConfig,
        {"num_key_value_heads": 1, "attention_bias": False},
    ),
    "glm-whole-rotary": (
        GlmForCausalLM,
        GlmConfig,
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e3,
                "partial_rotary_factor": 1.0,
            }
        },
    ),
    "glm4": (Glm4ForCausalLM, Glm4Config, {}),
    "glm4-no-groups": (
        Glm4ForCausalLM,
        Glm4Config,
        {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": False},
    ),
}


@pytest.fixture(scope="module", params=SHAPES, ids=SHAPES)
def pair(request, tmp_path_factory):
    """
    The reference and ours, loaded from what the reference saved, sharded.
    """
    model_type, config_type, changes = SHAPES[request.param]
    shape = {
        "vocab_size": 120,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(1)
    reference = model_type(config_type(**shape | changes)).eval()
    for name, parameter in reference.named_parameters():
        if "bias" in name or "norm" in name:  # these begin as zeros and ones, which hide mistakes
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    ours, config = load_model(folder, device="cpu", precision="fp32")
    assert config.ends == {0}
    return reference, ours


@torch.inference_mode()
def test_logits_are_those_of_the_reference(pair):
    """
    Within 1e-4 at every position of random sequences.
    """
    reference, ours = pair
    tokens = torch.randint(1, 120, (3, 40), generator=torch.Generator().manual_seed(2))
    wanted = reference(tokens).logits
    found = ours(tokens, torch.arange(40).expand(3, 40), attend_causal)

    assert wanted.std() > 0.5  # the comparison has something to compare
    assert torch.allclose(found, wanted, atol=1e-4, rtol=0), (found - wanted).abs().max()


def test_greedy_answers_are_those_of_the_reference(pair):
    """
    Token for token, in batches of random company that comes and goes between steps.
    """
    reference, ours = pair
    rng = random.Random(4)
    prompts = [[rng.randrange(1, 120) for _ in range(rng.randint(1, 12))] for _ in range(6)]
    lengths = [rng.randint(1, 12) for _ in prompts]
    wanted = [answer_of(reference, *asked) for asked in zip(prompts, lengths, strict=True)]

    scheduler = Scheduler(
        DenseRunner(ours, max_rows=3), Capacity(3, 3 * 128, 0.0), ours.config.ends
    )
    found = [[] for _ in prompts]
    asked = list(enumerate(zip(prompts, lengths, strict=True)))
    while asked or not scheduler.is_idle:
        for _ in range(min(rng.randint(0, 2), len(asked))):
            id, (prompt, length) = asked.pop()
            scheduler.submit(Submit(id, prompt, length, timeout_s=9.0), now_s=0.0)
        for id, token in scheduler.turn(0.0).tokens:
            found[id].append(token)

    assert found == wanted


@torch.inference_mode()
def answer_of(reference, prompt, length):
    """
    Return the reference's greedy answer, its end token cut off.
    """
    whole = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=length,
        do_sample=False,
    )[0].tolist()
    answer = whole[len(prompt) :]
    return answer[: answer.index(0)] if 0 in answer else answer
