"""
Encoders of the BERT family: from token ids to hidden states, both ways, without a cache.

Source: modeling_bert.py of transformers 5.23; tests/unit/runtime/models compares the two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runtime.contract.errors import ModelError
from runtime.models.config import MOST_LAYERS, ConfigKeys
from runtime.models.tensor_files import DTYPES, StoredTensor, find_tensors, unreadable
from runtime.plain_files import open_plain_file

ARCHITECTURE = "BertModel"
# Tensors that an encoder's file may have beside those that are computed with.
_UNUSED = ("pooler.", "embeddings.position_ids")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """
    The shape of an encoder and of its tensor files.

    Attributes:
        context_tokens: Rows of the table of positions.
        token_types: Rows of the table of types; only the first is used.
        matryoshka: Dimensions that a vector may be cut to.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    norm_eps: float
    context_tokens: int
    token_types: int
    matryoshka: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> "EncoderConfig":
        """
        Read the `config.json` of a BertModel.

        Raises:
            ModelError: A key is missing, or its value is not supported.
        """
        keys = ConfigKeys(document, where)
        keys.only("hidden_act", "gelu")
        keys.only("position_embedding_type", "absolute")
        keys.only("is_decoder", False)
        keys.only("quantization_config", None)
        hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
        if hidden % heads:
            raise keys.error("num_attention_heads", f"{hidden} values are not a multiple of it")
        return cls(
            vocabulary=keys.whole("vocab_size"),
            hidden=hidden,
            intermediate=keys.whole("intermediate_size"),
            layers=keys.whole("num_hidden_layers", most=MOST_LAYERS),
            heads=heads,
            norm_eps=keys.number("layer_norm_eps", 1e-12),
            context_tokens=keys.whole("max_position_embeddings"),
            token_types=keys.whole("type_vocab_size", 2),
            matryoshka=read_matryoshka(document, hidden, where),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """
        Return the shape of each tensor of the files by name.
        """
        hidden, inner = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, hidden),
            "embeddings.position_embeddings.weight": (self.context_tokens, hidden),
            "embeddings.token_type_embeddings.weight": (self.token_types, hidden),
        }
        parts = {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        norms = ["embeddings.LayerNorm"]
        for index in range(self.layers):
            at = f"encoder.layer.{index}"
            norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
            for name, shape in parts.items():
                shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in norms:
            shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
        return shapes

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())


def is_encoder(document: Mapping[str, Any]) -> bool:
    names = document.get("architectures")
    return isinstance(names, list) and ARCHITECTURE in names


def read_matryoshka(document: Mapping[str, Any], hidden: int, where: str) -> tuple[int, ...]:
    """
    Return `matryoshka_dimensions`: the sizes that the model's vectors may be cut to.

    Raises:
        ModelError: It is no list of sizes.
    """
    value = document.get("matryoshka_dimensions") or []
    if not isinstance(value, list) or any(
        type(size) is not int or not 0 < size <= hidden for size in value
    ):
        why = f"should be a list of whole numbers from 1 to {hidden}"
        raise ConfigKeys(document, where).error("matryoshka_dimensions", why)
    return tuple(sorted(value))


def find_encoder_tensors(path: Path, config: EncoderConfig) -> dict[str, StoredTensor]:
    """
    Return where each tensor of *config* is stored.

    Raises:
        ModelError: The files are broken, or do not match *config*.
    """
    stored, shapes = find_tensors(path), config.shapes()
    complaints = [f"{name} is missing" for name in shapes if name not in stored]
    for name, tensor in stored.items():
        if name not in shapes:
            if not name.startswith(_UNUSED):
                complaints.append(f"{name} is not part of this architecture")
        elif tensor.shape != shapes[name]:
            said = f"config.json says {list(shapes[name])}"
            complaints.append(f"{name} has shape {list(tensor.shape)}, {said}")
        elif tensor.dtype not in DTYPES:
            said = f"this runtime reads {', '.join(DTYPES)}"
            complaints.append(f"{name} is of type {tensor.dtype}, {said}")
    if complaints:
        raise ModelError(
            f"{path}: the weights do not match config.json",
            why="; ".join(complaints[:3]),
            fix="use the config.json that was saved with these weights",
        )
    return {name: stored[name] for name in shapes}


class Encoder:
    """
    An encoder with its weights loaded.

    Args:
        weights: By their names in the files, all of one type on one device.
    """

    def __init__(self, config: EncoderConfig, weights: Mapping[str, Tensor]) -> None:
        self.config, self._weights = config, weights
        self.device = weights["embeddings.word_embeddings.weight"].device

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self._weights.values())

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """
        Return the hidden states (n, t, hidden) of n texts.

        Args:
            tokens: (n, t) int64.
            mask: (n, t) bool: False for padding, which no token attends to.
        """
        w, count, longest = self._weights, *tokens.shape
        x = w["embeddings.word_embeddings.weight"][tokens]
        x = x + w["embeddings.position_embeddings.weight"][:longest]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
        for index in range(self.config.layers):
            at = f"encoder.layer.{index}"
            q, k, v = (
                self._linear(x, f"{at}.attention.self.{part}")
                .view(count, longest, self.config.heads, -1)
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
            y = y.transpose(1, 2).reshape(count, longest, -1)
            y = self._linear(y, f"{at}.attention.output.dense")
            x = self._norm(x + y, f"{at}.attention.output")
            y = functional.gelu(self._linear(x, f"{at}.intermediate.dense"))
            x = self._norm(x + self._linear(y, f"{at}.output.dense"), f"{at}.output")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        gain = self._weights[f"{name}.LayerNorm.weight"]
        bias = self._weights[f"{name}.LayerNorm.bias"]
        return functional.layer_norm(x, (self.config.hidden,), gain, bias, self.config.norm_eps)


def load_encoder(
    path: str | Path, config: EncoderConfig, *, device: str, dtype: torch.dtype
) -> Encoder:
    """
    Return the encoder in *path* on *device*.

    Raises:
        ModelError: The files are broken, or do not match *config*.
    """
    stored = find_encoder_tensors(Path(path), config)
    weights = {name: _read(each).to(device, dtype) for name, each in stored.items()}
    return Encoder(config, weights)


def _read(stored: StoredTensor) -> Tensor:
    try:
        with open_plain_file(stored.path) as file:
            file.seek(stored.offset)
            data = bytearray(file.read(stored.size_bytes))
    except OSError as error:
        raise unreadable(stored.path, str(error)) from error
    if len(data) < stored.size_bytes:
        raise unreadable(stored.path, "the file was truncated while it was read")
    return torch.frombuffer(data, dtype=DTYPES[stored.dtype]).view(stored.shape)
