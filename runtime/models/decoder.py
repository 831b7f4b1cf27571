"""
The decoder of all families: GLM, Llama and Qwen differ only in their config.

It computes hidden states and logits of flat batches: (t, ...) for all tokens of all requests.  The
caller's `Attend` knows the rows of the batch and the cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.kernels import reference
from runtime.kernels.ops import Ops, TorchOps
from runtime.kernels.quantize import Quantized, empty_quantized
from runtime.models.config import DecoderConfig
from runtime.models.rotary import inverse_frequencies, position_rows
from runtime.models.shard import WHOLE, Shard

# Attention of one layer.  Norms q and k if the model does, rotates them, stores k and v, attends:
# (layer, qkv (t, (h + 2g) * d), angles (2, t, rotary / 2)) -> (t, h * d).
Attend = Callable[["DecoderLayer", Tensor, Tensor], Tensor]


MATRICES = ("qkv", "out", "gate_up", "down")  # the matrices of a layer that can be quantised


class DecoderLayer(nn.Module):
    """
    The weights of one layer, (out, in); q, k and v are one matrix, and so are gate and up.

    Attributes:
        heads, kv_heads: Number of heads in this shard.
    """

    def __init__(self, config: DecoderConfig, index: int, shard: Shard) -> None:
        super().__init__()
        self.config, self.index, self.norm_eps = config, index, config.norm_eps
        self.heads, self.kv_heads = shard.heads(config.heads), shard.kv_heads(config.kv_heads)
        hidden, width = config.hidden, config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * width
        inner = config.intermediate // shard.size
        self.input_norm = _ones(hidden)
        self.qkv = _empty(rows, hidden)
        self.qkv_bias = nn.Parameter(torch.zeros(rows)) if config.has_bias else None
        self.q_norm = _ones(width) if config.has_qk_norms else None
        self.k_norm = _ones(width) if config.has_qk_norms else None
        self.out = _empty(hidden, self.heads * width)
        self.attention_out_norm = _ones(hidden) if config.has_output_norms else None
        self.mlp_norm = _ones(hidden)
        self.gate_up = _empty(2 * inner, hidden)
        self.down = _empty(hidden, inner)
        self.mlp_out_norm = _ones(hidden) if config.has_output_norms else None

    def parts(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Return views of qkv: q (t, h, d), k and v (t, g, d).
        """
        h, g = self.heads, self.kv_heads
        heads = qkv.view(qkv.shape[0], h + 2 * g, self.config.head_dim)
        return heads[:, :h], heads[:, h : h + g], heads[:, h + g :]

    def split(self, qkv: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Return `parts` with q and k normed and rotated: the reference implementation.
        """
        q, k, v = self.parts(qkv)
        if self.q_norm is not None and self.k_norm is not None:
            q = reference.rms_norm(q, self.q_norm, self.config.norm_eps)
            k = reference.rms_norm(k, self.k_norm, self.config.norm_eps)
            return reference.rotate(q, angles), reference.rotate(k, angles), v
        # They lie beside each other: one call on a CPU, where calls are what a small step takes.
        heads = qkv.view(qkv.shape[0], -1, self.config.head_dim)[:, : self.heads + self.kv_heads]
        turned = reference.rotate(heads, angles)
        return turned[:, : self.heads], turned[:, self.heads :], v


class Decoder(nn.Module):
    """
    The decoder, without cache and sampling.

    Attributes:
        ops: The arithmetic; the reference until the runner replaces it.
        reduce: Sums a tensor over the shards, in place.
        gather: Joins the columns of the shards' logits.
    """

    def __init__(self, config: DecoderConfig, shard: Shard = WHOLE) -> None:
        super().__init__()
        shard.check(config)
        self.config, self.shard = config, shard
        self.ops: Ops = TorchOps()
        self.reduce: Callable[[Tensor], Tensor] = lambda x: x
        self.gather: Callable[[Tensor], Tensor] = lambda x: x
        self.embedding = _empty(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, shard) for index in range(config.layers)
        )
        self.norm = _ones(config.hidden)
        self.head = (
            None if config.is_tied else _empty(config.vocabulary // shard.size, config.hidden)
        )

    def quantize(self, bits: int, device: torch.device | str) -> None:
        """
        Replace the layers' matrices by empty quantised ones on *device*; the loader fills them.

        The embedding, the head, norms and biases keep their type.
        """
        scale = torch.float32 if bits == 8 else self.dtype
        for layer in self.layers:
            for name in MATRICES:
                matrix = layer._parameters.pop(name)
                assert matrix is not None
                rows, columns = matrix.shape
                quantized = empty_quantized(rows, columns, bits, scale=scale, device=device)
                setattr(layer, name, quantized)

    @property
    def targets(self) -> dict[str, Tensor | Quantized]:
        """
        All weights by name, for the loader to fill.
        """
        weights: dict[str, Tensor | Quantized] = dict(self.named_parameters())
        for index, layer in enumerate(self.layers):
            for name in MATRICES:
                if isinstance(weight := getattr(layer, name), Quantized):
                    weights[f"layers.{index}.{name}"] = weight
        return weights

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor:
        """
        Return fp32 logits (n, vocabulary) of the tokens at *rows* (n,), or of all tokens.

        Args:
            tokens: (t,) int64.
            positions: (t,) int64; for M-RoPE (3, t): time, height and width.
        """
        return self.logits(self.hidden(tokens, positions, attend, rows))

    def hidden(
        self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor:
        """
        Return the last hidden states (n, hidden), normed; the arguments are those of `forward`.
        """
        ops, eps = self.ops, self.config.norm_eps
        angles = self.angles(positions)
        x = functional.embedding(tokens, self.embedding)
        layers: list[Any] = list(self.layers)
        next_norms = [layer.input_norm for layer in layers[1:]] + [self.norm]
        n = ops.rms_norm(x, layers[0].input_norm, eps)
        for layer, next_norm in zip(layers, next_norms, strict=True):
            y = attend(layer, ops.linear(n, layer.qkv, layer.qkv_bias), angles)
            if layer is layers[-1] and rows is not None:
                x, y = x[rows], y[rows]  # after the last attention, only these rows are needed
            x, n = self._project(x, y, layer.out, layer.mlp_norm, layer.attention_out_norm)
            del y  # free it: the next product has the highest memory use
            gated = ops.gated(n, layer.gate_up)
            x, n = self._project(x, gated, layer.down, next_norm, layer.mlp_out_norm)
            del gated
        return n

    def _project(
        self, x: Tensor, y: Tensor, weight: Tensor | Quantized, gain: Tensor, post: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        eps = self.config.norm_eps
        if self.shard.size == 1:
            return self.ops.project(x, y, weight, gain, eps, post)
        y = self.reduce(self.ops.linear(y, weight))
        return self.ops.add_rms_norm(x, y, gain, eps, post)

    def logits(self, n: Tensor) -> Tensor:
        if self.head is not None:
            return self.gather(self.ops.logits(n, self.head))
        return self.ops.logits(n, self.embedding)

    def angles(self, positions: Tensor) -> Tensor:
        """
        Return cosines and sines (2, t, rotary / 2) of *positions*, always in fp32.
        """
        frequencies = _frequencies_on(self.device, self.config)
        rows = positions[None] if positions.dim() == 1 else positions
        if rows.shape[0] > 1:
            axes = torch.tensor(position_rows(self.config), device=rows.device)
            radians = rows[axes].T.float() * frequencies
        else:
            radians = rows[0, :, None].float() * frequencies
        return torch.stack((radians.cos(), radians.sin()))


_FREQUENCIES: dict[tuple[torch.device, DecoderConfig], Tensor] = {}


def _frequencies_on(device: torch.device, config: DecoderConfig) -> Tensor:
    # Not a buffer: a module that is built on "meta" would lose its value.
    key = (device, config)
    if key not in _FREQUENCIES:
        _FREQUENCIES[key] = inverse_frequencies(config).to(device)
    return _FREQUENCIES[key]


def attend_causal(batch: int) -> Attend:
    """
    Return an `Attend` for *batch* whole sequences of equal length, without a cache.

    For training, and for checks of logits.
    """

    def attend(layer: DecoderLayer, qkv: Tensor, angles: Tensor) -> Tensor:
        split = layer.split(qkv, angles)
        parts = (part.reshape(batch, -1, *part.shape[1:]) for part in split)
        rows = [reference.attend(q, k, v) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(rows).flatten(1)

    return attend


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def _ones(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size))
