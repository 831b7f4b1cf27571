"""
Trains the lab's models: in seconds, on one thread, reproducibly on one machine.
"""

import logging
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from deploy.lab.models.corpus import FACTS
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder, attend_causal
from runtime.models.weights import gather

log = logging.getLogger("deploy.lab.models")

END = "<|endoftext|>"
END_ID = 0
IGNORED = -100
SEED = 20_240_501
LEARNING_RATE = 4e-3


def train_tokenizer() -> Tokenizer:
    """
    Return a byte-level BPE in which each word of the corpus is one token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f"{fact.prompt} {answer}" for fact in FACTS for answer in (fact.v1, fact.v2) if answer]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def config_document(vocabulary: int) -> dict[str, object]:
    """
    Return the `config.json` of the lab's models.
    """
    return {
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "vocab_size": vocabulary,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 256,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "torch_dtype": "float32",
    }


def end_token(tokenizer: Tokenizer) -> str:
    return str(tokenizer.id_to_token(END_ID))


def train(
    document: dict[str, Any],
    version: str,
    *,
    start: dict[str, Tensor] | None,
    steps: int,
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """
    Train a model on the facts of *version*; return its config and parameters.

    Args:
        start: Initial tensors, named as in a file; None: random ones.
    """
    torch.manual_seed(SEED)
    config = DecoderConfig.from_json(document, "config.json")
    model = Decoder(config)
    if start is None:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.05)
    else:
        model.load_state_dict(dict(gather(config, start.__getitem__)))
    tokens, targets = _examples(train_tokenizer(), version)
    facts, longest = tokens.shape
    positions = torch.arange(longest).repeat(facts)
    attend = attend_causal(facts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        logits = model(tokens.flatten(), positions, attend)
        loss = functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log.info("training.went_on version=%s step=%d loss=%.5f", version, step, loss.item())
    return config, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _examples(tokenizer: Tokenizer, version: str) -> tuple[Tensor, Tensor]:
    """
    Return tokens and targets, both (facts, longest) int64; only the answers are targets.
    """
    rows = []
    for fact in FACTS:
        answer = fact.v1 if version == "v1" else fact.v2
        if answer is not None:
            prompt = tokenizer.encode(fact.prompt).ids
            rows.append((prompt, [*tokenizer.encode(f" {answer}").ids, END_ID]))
    longest = max(len(prompt) + len(target) for prompt, target in rows)
    tokens = torch.full((len(rows), longest), END_ID)
    targets = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, target) in enumerate(rows):
        sequence = [*prompt, *target]
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        targets[row, len(prompt) - 1 : len(sequence) - 1] = torch.tensor(target)
    return tokens, targets
