"""
A decoder's configuration, from the `config.json` of every supported family.  Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.contract.errors import ModelError
from runtime.models.families import find_family


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """
    All rotary frequencies are divided by *factor*.
    """

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """
    Slow rotary frequencies are divided by *factor*, fast ones are left, those between are mixed.

    Attributes:
        slow, fast: Turns within *trained_tokens*; a frequency with fewer than *slow* is slow.
    """

    factor: float
    slow: float
    fast: float
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """
    The shape of a decoder, and of its files.

    Attributes:
        rotary: Leading values of a head that are rotated; the rest pass.
        mrope_section: Rotary frequencies that time, height and width have; None: one position.
        has_bias: Whether q, k and v have one.
        has_output_norms: Attention and MLP outputs are normed before they are added.
        has_qk_norms: Each head's q and k are normed before they are rotated.
        is_interleaved: Values that are rotated together are neighbours in the file; else they are
            half of *rotary* apart.
        is_gate_up_joined: The MLP's gate and up are one tensor in the file.
        stop_token_ids: Token ids that end an answer.
        prefix: Of the names of the decoder's tensors, except the head's.
        ignored: Prefixes of tensors of other parts of the model.
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
    rope_scaling: LinearScaling | Llama3Scaling | None
    mrope_section: tuple[int, ...] | None
    norm_eps: float
    context_tokens: int
    is_tied: bool
    has_bias: bool
    has_output_norms: bool
    has_qk_norms: bool
    is_interleaved: bool
    is_gate_up_joined: bool
    stop_token_ids: frozenset[int]
    prefix: str = "model."
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "DecoderConfig":
        """
        Read a `config.json` of transformers 4 or 5.

        Raises:
            ModelError: A key is missing, or has a value that this decoder does not support.
        """
        family = find_family(found, where)
        text = found.get("text_config") or found if family.is_multimodal else found
        rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
        keys = _Keys({**text, **rope}, where)
        hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
        kv_heads = keys.whole("num_key_value_heads", heads)
        head_dim = keys.whole("head_dim", family.head_dim or hidden // heads)
        rotary = int(head_dim * keys.number("partial_rotary_factor", family.rotary_share))
        section = tuple(rope.get("mrope_section") or (8, 12, 12)) if family.is_multimodal else None
        keys.only("hidden_act", "silu")
        keys.only("mlp_bias", False)
        keys.only("use_sliding_window", False)
        keys.only("quantization_config", None)
        if not family.is_glm:
            # In transformers the one also adds a bias to the output; the other is ignored.
            keys.only("attention_bias", False)
            keys.only("partial_rotary_factor", 1)
        if heads % kv_heads:
            raise keys.error("num_key_value_heads", f"{heads} heads can't be shared out")
        if rotary % 2 or (section and 2 * sum(section) != rotary):
            key = "mrope_section" if section else "partial_rotary_factor"
            raise keys.error(key, f"{rotary} of a head's {head_dim} values are rotated, in pairs")
        return cls(
            vocabulary=keys.whole("vocab_size"),
            hidden=hidden,
            intermediate=keys.whole("intermediate_size"),
            layers=keys.whole("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary=rotary,
            rope_theta=keys.number("rope_theta", 10000.0),
            rope_scaling=_scaling(keys),
            mrope_section=section,
            norm_eps=keys.number("rms_norm_eps"),
            context_tokens=keys.whole("max_position_embeddings"),
            # transformers 4 wrote it among the text's keys, 5 writes it at the top.
            is_tied=any(part.get("tie_word_embeddings") for part in (text, found)),
            has_bias=family.has_bias or bool(text.get("attention_bias", family.is_glm)),
            has_output_norms=family.has_output_norms,
            has_qk_norms=family.has_qk_norms,
            is_interleaved=family.is_glm,
            is_gate_up_joined=family.is_glm,
            stop_token_ids=read_stop_token_ids(text) or read_stop_token_ids(found),
            prefix="model.language_model." if family.is_multimodal else "model.",
            ignored=("model.visual.",) if family.is_multimodal else (),
        )


def read_stop_token_ids(found: Mapping[str, Any]) -> frozenset[int]:
    """
    Return the ids under `eos_token_id`: a number, a list or nothing.
    """
    ends = found.get("eos_token_id")
    return frozenset([ends] if isinstance(ends, int) else ends or ())


class _Keys:
    """
    The keys of a document, each checked as it is read; null is absent.
    """

    def __init__(self, found: Mapping[str, Any], where: str) -> None:
        self.found, self._where = found, where

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value):
            raise self.error(key, "should be a whole number")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.found.get(key) is None else self.found[key]
        if value is None:
            raise self.error(key, "a decoder needs it")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(key, "should be a number above 0")
        return value

    def only(self, key: str, known: object) -> None:
        if self.found.get(key) not in (None, known):
            raise self.error(key, f"this decoder has only {known!r}")

    def error(self, key: str, why: str) -> ModelError:
        value = self.found.get(key)
        return ModelError(
            f"{self._where}: {key}: {'missing' if value is None else repr(value)}",
            why=why,
            fix="take the config.json that was saved with these weights, or serve another model",
        )


def _scaling(keys: _Keys) -> LinearScaling | Llama3Scaling | None:
    kind = keys.found.get("rope_type") or keys.found.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(keys.number("factor"))
    if kind == "llama3":
        trained = keys.whole("max_position_embeddings")
        return Llama3Scaling(
            factor=keys.number("factor"),
            slow=keys.number("low_freq_factor"),
            fast=keys.number("high_freq_factor"),
            trained_tokens=keys.whole("original_max_position_embeddings", trained),
        )
    raise keys.error("rope_type", f"{kind!r}: this decoder has 'default', 'linear' and 'llama3'")
