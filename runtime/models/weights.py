"""
Names and shapes of a GLM's tensors in its safetensors files, and how they become ours.  Pure.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.models.glm import GlmConfig


@dataclass(frozen=True, slots=True)
class Source:
    """
    One of our parameters.

    Attributes:
        parts: The file's tensors that it is made of, stacked along the first dimension.
        rows: How many rows each of them has.
        columns: What each row has; None: the parts are vectors.
    """

    parts: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int | None = None

    def shape(self, part: int) -> list[int]:
        return [self.rows[part]] + ([] if self.columns is None else [self.columns])


def sources(config: GlmConfig) -> dict[str, Source]:
    """
    Return where each parameter of `Glm` comes from, by its name.
    """
    hidden, vocabulary = config.hidden, config.vocabulary
    found = {
        "embedding": Source(("model.embed_tokens.weight",), (vocabulary,), hidden),
        "norm": Source(("model.norm.weight",), (hidden,)),
    }
    if not config.is_tied:
        found["head"] = Source(("lm_head.weight",), (vocabulary,), hidden)
    for index in range(config.layers):
        for name, source in _layer(config, f"model.layers.{index}"):
            found[f"layers.{index}.{name}"] = source
    return found


def _layer(config: GlmConfig, at: str) -> Iterator[tuple[str, Source]]:
    hidden = config.hidden
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def qkv(kind: str) -> tuple[str, ...]:
        return tuple(f"{at}.self_attn.{part}_proj.{kind}" for part in "qkv")

    yield "input_norm", Source((f"{at}.input_layernorm.weight",), (hidden,))
    yield "qkv", Source(qkv("weight"), (q, kv, kv), hidden)
    if config.has_bias:
        yield "qkv_bias", Source(qkv("bias"), (q, kv, kv))
    yield "out", Source((f"{at}.self_attn.o_proj.weight",), (hidden,), q)
    yield "mlp_norm", Source((f"{at}.post_attention_layernorm.weight",), (hidden,))
    gate_up = 2 * config.intermediate
    yield "gate_up", Source((f"{at}.mlp.gate_up_proj.weight",), (gate_up,), hidden)
    yield "down", Source((f"{at}.mlp.down_proj.weight",), (hidden,), config.intermediate)
    if config.has_output_norms:
        yield "attention_out_norm", Source((f"{at}.post_self_attn_layernorm.weight",), (hidden,))
        yield "mlp_out_norm", Source((f"{at}.post_mlp_layernorm.weight",), (hidden,))


def gather(config: GlmConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """
    Yield our parameters, made of the file's tensors.
    """
    for name, source in sources(config).items():
        parts = [read(part) for part in source.parts]
        yield name, parts[0] if len(parts) == 1 else torch.cat(parts)


def scatter(config: GlmConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Return the file's tensors, cut from our parameters: the inverse of `gather`.
    """
    found = {}
    for name, source in sources(config).items():
        for part, tensor in zip(
            source.parts, torch.split(state[name], list(source.rows)), strict=True
        ):
            found[part] = tensor.contiguous()
    return found
