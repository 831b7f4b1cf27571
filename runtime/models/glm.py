"""
The GLM decoder: GlmForCausalLM and Glm4ForCausalLM (GLM-4-9B and its -0414 line).

Source: transformers `models/glm` and `models/glm4`; tests/unit/runtime holds the two together.
Shapes: b requests, s positions, h query heads, g KV heads, d values a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import ModelError

# Stores k and v (b, s, g, d) of a layer and attends q (b, s, h, d) to all that its request has:
# (layer, q, k, v) -> (b, s, h, d).  Where the cache lies and how it is laid out is the caller's.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

ARCHITECTURES = ("GlmForCausalLM", "Glm4ForCausalLM")


@dataclass(frozen=True, slots=True)
class GlmConfig:
    """
    What `config.json` says of a GLM.

    Attributes:
        rotary: Leading values of a head that are rotated; the rest pass.
        has_bias: Whether q, k and v have one.
        has_output_norms: Glm4: attention and MLP outputs are normed before they are added.
        ends: Token ids that end an answer.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    rope_theta: float
    norm_eps: float
    context_tokens: int
    is_tied: bool
    has_bias: bool
    has_output_norms: bool
    ends: frozenset[int]

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "GlmConfig":
        """
        Read a `config.json` of transformers 4 or 5.

        Raises:
            ModelError: A key is missing, or asks for what this decoder does not have.
        """
        try:
            rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
            heads = found["num_attention_heads"]
            head_dim = found.get("head_dim") or found["hidden_size"] // heads
            share = rope.get("partial_rotary_factor", found.get("partial_rotary_factor", 0.5))
            ends = found.get("eos_token_id")
            config = cls(
                vocabulary=found["vocab_size"],
                hidden=found["hidden_size"],
                intermediate=found["intermediate_size"],
                layers=found["num_hidden_layers"],
                heads=heads,
                kv_heads=found.get("num_key_value_heads") or heads,
                head_dim=head_dim,
                rotary=int(head_dim * share),
                rope_theta=float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
                norm_eps=found["rms_norm_eps"],
                context_tokens=found["max_position_embeddings"],
                is_tied=found.get("tie_word_embeddings", False),
                has_bias=found["attention_bias"],
                has_output_norms="Glm4ForCausalLM" in found["architectures"],
                ends=frozenset([ends] if isinstance(ends, int) else ends or ()),
            )
        except KeyError as error:
            raise ModelError(
                f"{where}: {error.args[0]}: missing",
                why="a GLM needs it",
                fix="take the config.json that was saved with these weights",
            ) from error
        for key, value, known in (
            ("hidden_act", found.get("hidden_act", "silu"), "silu"),
            ("rope_type", rope.get("rope_type", "default"), "default"),
        ):
            if value != known:
                raise ModelError(
                    f"{where}: {key}: {value!r}",
                    why=f"this decoder has only {known!r}",
                    fix="serve a model that uses it",
                )
        return config


class GlmLayer(nn.Module):
    """
    One decoder layer.  q, k and v are one matrix, and so are gate and up.
    """

    def __init__(self, config: GlmConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        hidden, width = config.hidden, config.head_dim
        rows = (config.heads + 2 * config.kv_heads) * width
        self.input_norm = nn.Parameter(torch.ones(hidden))
        self.qkv = nn.Parameter(torch.empty(rows, hidden))
        self.qkv_bias = nn.Parameter(torch.zeros(rows)) if config.has_bias else None
        self.out = nn.Parameter(torch.empty(hidden, config.heads * width))
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * config.intermediate, hidden))
        self.down = nn.Parameter(torch.empty(hidden, config.intermediate))
        if config.has_output_norms:
            self.attention_out_norm = nn.Parameter(torch.ones(hidden))
            self.mlp_out_norm = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """
        Return x (b, s, hidden) after this layer.
        """
        c = self.config
        norms = c.has_output_norms
        normed = _norm(x, self.input_norm, c.norm_eps)
        qkv = functional.linear(normed, self.qkv, self.qkv_bias)
        qkv = qkv.view(*x.shape[:2], c.heads + 2 * c.kv_heads, c.head_dim)
        turned = _rotate(qkv[:, :, : c.heads + c.kv_heads], cos, sin)
        q, k, v = turned[:, :, : c.heads], turned[:, :, c.heads :], qkv[:, :, -c.kv_heads :]
        y = functional.linear(attend(self.index, q, k, v).flatten(2), self.out)
        x = x + (_norm(y, self.attention_out_norm, c.norm_eps) if norms else y)

        gate_up = functional.linear(_norm(x, self.mlp_norm, c.norm_eps), self.gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        y = functional.linear(functional.silu(gate) * up, self.down)
        return x + (_norm(y, self.mlp_out_norm, c.norm_eps) if norms else y)


class Glm(nn.Module):
    """
    The decoder, without cache and without sampling.
    """

    inverse_frequencies: Tensor

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocabulary, config.hidden))
        self.layers = nn.ModuleList(GlmLayer(config, index) for index in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.head = (
            None if config.is_tied else nn.Parameter(torch.empty(config.vocabulary, config.hidden))
        )

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, last: Tensor | None = None
    ) -> Tensor:
        """
        Return the logits, fp32: (b, vocabulary) of the index *last* (b,) of each request, or
        (b, s, vocabulary) of all.

        Args:
            tokens, positions: (b, s) int64.
        """
        x = functional.embedding(tokens, self.embedding)
        cos, sin = self._angles(positions)
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        if last is not None:
            x = x[torch.arange(x.shape[0], device=x.device), last]
        x = _norm(x, self.norm, self.config.norm_eps)
        head = self.embedding if self.head is None else self.head
        return functional.linear(x, head).float()

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # (b, s, 1, rotary / 2), computed in fp32 whatever the weights are
        rotary = self.config.rotary
        steps = torch.arange(0, rotary, 2, device=positions.device, dtype=torch.float32) / rotary
        angles = positions[..., None, None].float() * (1.0 / self.config.rope_theta**steps)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    Rotate the leading values of each head of x (b, s, heads, d), pair by neighbouring pair.
    """
    rotary = 2 * cos.shape[-1]
    even, odd = x[..., 0:rotary:2], x[..., 1:rotary:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., rotary:]), dim=-1)


def attend_grouped(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """
    Attend q (b, s, h, d) to keys and values (b, t, g, d) where mask (b, s, t) is true.

    The query heads that share a KV head stand beside its positions, so that nothing is repeated.
    """
    b, s, h, d = q.shape
    g = keys.shape[2]
    shared = h // g
    q = q.view(b, s, g, shared, d).permute(0, 2, 3, 1, 4).reshape(b, g, shared * s, d)
    mask = mask[:, None, None].expand(b, 1, shared, *mask.shape[1:]).flatten(2, 3)
    y = functional.scaled_dot_product_attention(
        q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    return y.reshape(b, g, shared, s, d).permute(0, 3, 1, 2, 4).reshape(b, s, h, d)


def attend_causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """
    The Attend of whole sequences without a cache: training, and checking logits.
    """
    b, s = q.shape[:2]
    mask = torch.ones(s, s, dtype=torch.bool, device=q.device).tril()
    return attend_grouped(q, k, v, mask.expand(b, s, s))
