"""
Names and shapes of a decoder's tensors in its safetensors files, and their conversion.  Pure.

Our decoder rotates neighbouring values.  Some families store the two values of a pair half a head
apart: `gather` reorders the rows of q and k for them, and `scatter` restores their order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.models.config import DecoderConfig
from runtime.models.shard import WHOLE, Shard


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """
    The slice of one file tensor that goes into one of our parameters.

    Attributes:
        name, shape: Name and shape of the file's tensor, a matrix or a vector.
        rows, columns: The slice; columns is None for all columns, and for a vector.
        pairing: (head_dim, rotary): the first *rotary* rows of each head are stored as two halves
            and become neighbouring pairs; None: rows keep their order.
    """

    name: str
    shape: tuple[int, ...]
    rows: range
    columns: range | None = None
    pairing: tuple[int, int] | None = None

    @property
    def index(self) -> tuple[slice, ...]:
        ranges = (self.rows,) if self.columns is None else (self.rows, self.columns)
        return tuple(slice(each.start, each.stop) for each in ranges)

    def arrange(self, rows: Tensor) -> Tensor:
        """
        Return the file's *rows*, which are whole heads, in our order.
        """
        return self._transpose(rows, 2, -1)

    def restore(self, rows: Tensor) -> Tensor:
        """
        Return our *rows* in the file's order.
        """
        return self._transpose(rows, -1, 2)

    def _transpose(self, rows: Tensor, outer: int, inner: int) -> Tensor:
        if self.pairing is None:
            return rows
        head_dim, rotary = self.pairing
        heads = rows.reshape(-1, head_dim, *rows.shape[1:])
        pairs = heads[:, :rotary].reshape(len(heads), outer, inner, *rows.shape[1:])
        turned = pairs.transpose(1, 2).flatten(1, 2)
        return torch.cat((turned, heads[:, rotary:]), dim=1).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """
    The file slices that make up one of our parameters, stacked by rows.
    """

    pieces: tuple[TensorSlice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.pieces[0]
        columns = first.shape[1:] if first.columns is None else (len(first.columns),)
        return (sum(len(piece.rows) for piece in self.pieces), *columns)

    @property
    def placements(self) -> Iterator[tuple[slice, TensorSlice]]:
        """
        Yield the rows of our parameter that each piece fills.
        """
        start = 0
        for piece in self.pieces:
            yield slice(start, start + len(piece.rows)), piece
            start += len(piece.rows)


def sources(config: DecoderConfig, shard: Shard = WHOLE) -> dict[str, ParameterSource]:
    """
    Return the source of each parameter of `Decoder`, by the parameter's name.
    """
    hidden, vocabulary = config.hidden, config.vocabulary
    by_name = {
        "embedding": _whole(f"{config.prefix}embed_tokens.weight", vocabulary, hidden),
        "norm": _whole(f"{config.prefix}norm.weight", hidden),
    }
    if not config.is_tied:
        head = TensorSlice("lm_head.weight", (vocabulary, hidden), rows=shard.span(vocabulary))
        by_name["head"] = ParameterSource((head,))
    for index in range(config.layers):
        for name, source in _layer(config, shard, f"{config.prefix}layers.{index}"):
            by_name[f"layers.{index}.{name}"] = source
    return by_name


def _layer(config: DecoderConfig, shard: Shard, at: str) -> Iterator[tuple[str, ParameterSource]]:
    hidden, width, inner = config.hidden, config.head_dim, config.intermediate
    q, kv = shard.span(config.heads), shard.kv_span(config.kv_heads)
    pairing = None if config.is_interleaved else (width, config.rotary)

    def qkv(kind: str, *columns: int) -> ParameterSource:
        parts = (("q", config.heads, q), ("k", config.kv_heads, kv), ("v", config.kv_heads, kv))
        return ParameterSource(
            tuple(
                TensorSlice(
                    f"{at}.self_attn.{part}_proj.{kind}",
                    (heads * width, *columns),
                    rows=range(span.start * width, span.stop * width),
                    pairing=None if part == "v" else pairing,
                )
                for part, heads, span in parts
            )
        )

    yield "input_norm", _whole(f"{at}.input_layernorm.weight", hidden)
    yield "qkv", qkv("weight", hidden)
    if config.has_bias:
        yield "qkv_bias", qkv("bias")
    if config.has_qk_norms:
        for part in "qk":
            name = f"{at}.self_attn.{part}_norm.weight"
            yield (
                f"{part}_norm",
                ParameterSource((TensorSlice(name, (width,), range(width), pairing=pairing),)),
            )
    yield "out", _columns(f"{at}.self_attn.o_proj.weight", hidden, config.heads * width, shard)
    yield "mlp_norm", _whole(f"{at}.post_attention_layernorm.weight", hidden)
    gates = shard.span(inner)
    if config.is_gate_up_joined:
        name, shape = f"{at}.mlp.gate_up_proj.weight", (2 * inner, hidden)
        ups = range(gates.start + inner, gates.stop + inner)
        yield (
            "gate_up",
            ParameterSource(
                (TensorSlice(name, shape, rows=gates), TensorSlice(name, shape, rows=ups))
            ),
        )
    else:
        names = (f"{at}.mlp.{part}_proj.weight" for part in ("gate", "up"))
        yield (
            "gate_up",
            ParameterSource(
                tuple(TensorSlice(name, (inner, hidden), rows=gates) for name in names)
            ),
        )
    yield "down", _columns(f"{at}.mlp.down_proj.weight", hidden, inner, shard)
    if config.has_output_norms:
        yield "attention_out_norm", _whole(f"{at}.post_self_attn_layernorm.weight", hidden)
        yield "mlp_out_norm", _whole(f"{at}.post_mlp_layernorm.weight", hidden)


def _whole(name: str, *shape: int) -> ParameterSource:
    return ParameterSource((TensorSlice(name, shape, rows=range(shape[0])),))


def _columns(name: str, rows: int, columns: int, shard: Shard) -> ParameterSource:
    span = None if shard.size == 1 else shard.span(columns)
    return ParameterSource((TensorSlice(name, (rows, columns), rows=range(rows), columns=span),))


def gather(
    config: DecoderConfig, read: Callable[[str], Tensor], shard: Shard = WHOLE
) -> Iterator[tuple[str, Tensor]]:
    """
    Yield our parameters by name, assembled from the file's tensors.

    Args:
        read: Returns a tensor of the file by its name.
    """
    for name, source in sources(config, shard).items():
        parts = [piece.arrange(read(piece.name)[piece.index]) for piece in source.pieces]
        yield name, parts[0] if len(parts) == 1 else torch.cat(parts)


def scatter(config: DecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Return the file's tensors, built from an unsharded decoder's parameters; inverts `gather`.
    """
    tensors: dict[str, Tensor] = {}
    for name, source in sources(config).items():
        for rows, piece in source.placements:
            if piece.name not in tensors:
                tensors[piece.name] = state[name].new_empty(piece.shape)
            tensors[piece.name][piece.index] = piece.restore(state[name][rows])
    return tensors
