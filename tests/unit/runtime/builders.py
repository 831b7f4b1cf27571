"""
Builds tiny models with random weights; a test names only what matters to it.
"""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder
from runtime.models.weights import scatter

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


def make_config_document(**changes):
    document = {
        "architectures": ["Glm4ForCausalLM"],
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "eos_token_id": None,
    }
    return document | changes


def make_model(seed=0, std=0.4, **changes):
    """
    Return a model whose greedy answers differ from token to token.

    Args:
        std: Standard deviation of its weights; with 0.4 the answers are sensitive to every weight.
    """
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig.from_json(make_config_document(**changes), "config.json"))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model.requires_grad_(False).eval()


def make_tokenizer():
    """
    Return a tokenizer with one token for each character of printable ASCII.
    """
    space = "\u0120"  # as byte-level tokenizers write it
    vocabulary = {char: id for id, char in enumerate([space, *map(chr, range(33, 127))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_model(folder, *, nan_text="", seed=0, std=0.4, **changes):
    """
    Write a model directory without stop tokens: each answer has max_tokens tokens.

    Args:
        nan_text: Characters whose embeddings are NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    changes = {"vocab_size": tokenizer.get_vocab_size()} | changes
    document = make_config_document(**changes)
    model = make_model(seed=seed, std=std, **changes)
    for id in tokenizer.encode(nan_text).ids:
        model.embedding[id] = float("nan")
        # A mean of two rows is never the likeliest: no answer has a lost character.
        model.head[id] = (model.head[0] + model.head[1]) / 2
    tensors = scatter(model.config, dict(model.state_dict()))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(document))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
