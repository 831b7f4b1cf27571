"""
Reads a decoder's configuration from the `config.json` of any supported family.  Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import float_info
from typing import Any

from runtime.contract.errors import ModelError
from runtime.models.families import MAX_SHOWN, find_family

MOST = 2**31 - 1  # of a size; the largest published models have a thousandth of it
MOST_LAYERS = 10_000
MOST_OF_A_MATRIX = 2**40  # values; the largest published ones have a hundredth of it
_QUANTIZED = (
    "this decoder reads weights in fp32, fp16 and bf16",
    "release the model before it was quantized, and set weights: int8 or int4; or engine: vllm",
)
_FIX = "use the config.json that was saved with these weights, or serve another model"


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """
    Divides all rotary frequencies by *factor*.
    """

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """
    Divides slow rotary frequencies by *factor*, keeps fast ones, and interpolates between them.

    Attributes:
        slow, fast: Bounds in turns within *trained_tokens*: fewer than *slow* is slow, more than
            *fast* is fast.
    """

    factor: float
    slow: float
    fast: float
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """
    The shape of a decoder and of its tensor files.

    Attributes:
        rotary: Number of leading values of a head that are rotated.
        mrope_section: Number of rotary frequencies for time, height and width; None: plain RoPE.
        is_tied: The head shares the embedding's weights.
        has_bias: The projections of q, k and v have a bias.
        has_output_norms: Attention and MLP outputs are normed before they are added.
        has_qk_norms: Each head's q and k are normed before they are rotated.
        is_interleaved: The two values of a rotary pair are neighbours in the file; otherwise they
            are half of *rotary* apart.
        is_gate_up_joined: The MLP's gate and up are one tensor in the file.
        stop_token_ids: Token ids that end an answer.
        prefix: Prefix of the decoder's tensor names, except the head's.
        ignored: Prefixes of tensors that belong to other parts of the model.
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
    def from_json(cls, document: Mapping[str, Any], where: str) -> "DecoderConfig":
        """
        Read a `config.json` of transformers 4 or 5.

        Args:
            where: Name of the file, for errors.

        Raises:
            ModelError: A key is missing, or its value is not supported.
        """
        try:
            return cls._from_json(document, where)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ModelError(
                f"{where}: not the config of a model",
                why=f"a key has a value of a wrong type: {error}",
                fix=_FIX,
            ) from error

    @classmethod
    def _from_json(cls, document: Mapping[str, Any], where: str) -> "DecoderConfig":
        family = find_family(document, where)
        text = document.get("text_config") or document if family.is_multimodal else document
        rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
        if any(isinstance(value, Mapping) for value in rope.values()):
            why = "each kind of layer has its own; this decoder rotates all layers alike"
            raise ConfigKeys(text, where).error(
                "rope_scaling" if text.get("rope_scaling") else "rope_parameters", why
            )
        keys = ConfigKeys({**text, **rope}, where)
        hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
        kv_heads = keys.whole("num_key_value_heads", heads)
        head_dim = keys.whole("head_dim", family.head_dim or hidden // heads)
        rotary = int(head_dim * keys.number("partial_rotary_factor", family.rotary_share))
        section = _mrope_section(keys) if family.is_multimodal else None
        keys.only("hidden_act", "silu")
        keys.only("mlp_bias", False)
        keys.only("use_sliding_window", False)
        for part in (text, document):
            if part.get("quantization_config") is not None:
                raise ConfigKeys(part, where).error("quantization_config", *_QUANTIZED)
        if not family.is_glm:
            # transformers adds a bias to the output too, and ignores the rotary factor.
            keys.only("attention_bias", False)
            keys.only("partial_rotary_factor", 1)
        if heads % kv_heads:
            raise keys.error("num_key_value_heads", f"{heads} query heads are not a multiple of it")
        if rotary > head_dim:
            raise keys.error("partial_rotary_factor", f"a head has only {head_dim} values")
        if rotary % 2 or (section and 2 * sum(section) != rotary):
            key = "mrope_section" if section else "partial_rotary_factor"
            key = key if keys.document.get(key) is not None else "head_dim"
            raise keys.error(key, f"{rotary} of a head's {head_dim} values are rotated, in pairs")
        vocabulary, intermediate = keys.whole("vocab_size"), keys.whole("intermediate_size")
        rows = {"vocab_size": vocabulary, "intermediate_size": 2 * intermediate}
        rows["num_attention_heads"] = heads * head_dim
        for key, count in rows.items():
            if count * hidden > MOST_OF_A_MATRIX:
                why = f"a matrix would have {count * hidden} values, with hidden_size {hidden}"
                raise keys.error(key, f"{why}; {MOST_OF_A_MATRIX} at most")
        return cls(
            vocabulary=vocabulary,
            hidden=hidden,
            intermediate=intermediate,
            layers=keys.whole("num_hidden_layers", most=MOST_LAYERS),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary=rotary,
            rope_theta=keys.number("rope_theta", 10000.0),
            rope_scaling=_scaling(keys),
            mrope_section=section,
            norm_eps=keys.number("rms_norm_eps"),
            context_tokens=keys.whole("max_position_embeddings"),
            # transformers 4 writes it in text_config, transformers 5 at the top level.
            is_tied=any(
                ConfigKeys(part, where).flag("tie_word_embeddings") for part in (text, document)
            ),
            has_bias=family.has_bias or keys.flag("attention_bias", family.is_glm),
            has_output_norms=family.has_output_norms,
            has_qk_norms=family.has_qk_norms,
            is_interleaved=family.is_glm,
            is_gate_up_joined=family.is_glm,
            stop_token_ids=read_stop_token_ids(text, where) or read_stop_token_ids(document, where),
            prefix="model.language_model." if family.is_multimodal else "model.",
            ignored=("model.visual.",) if family.is_multimodal else (),
        )


def read_stop_token_ids(document: Mapping[str, Any], where: str) -> frozenset[int]:
    """
    Return the ids of `eos_token_id`, which is a number, a list or absent.

    Raises:
        ModelError: It is something else.
    """
    value = document.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(id) is not int or id > MOST for id in ids):
        why = "should be a token id, or a list of token ids"
        raise ConfigKeys(document, where).error("eos_token_id", why)
    return frozenset(ids)


class ConfigKeys:
    """
    Reads and checks the keys of a config document; null means absent.
    """

    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        self.document, self._where = document, where

    def whole(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        value = self.number(key, default)
        if value > most or value != int(value):
            raise self.error(key, f"should be a whole number, {most} at most")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.document.get(key) is None else self.document[key]
        if value is None:
            raise self.error(key, "this decoder requires it")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, "should be a number above 0")
        if not 0 < value <= float_info.max:  # a whole number can be larger than any float
            raise self.error(key, "should be a number above 0 that a float can hold")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.document.get(key)
        if not (value is None or isinstance(value, bool)):
            raise self.error(key, "should be true or false")
        return default if value is None else value

    def only(self, key: str, known: object) -> None:
        if self.document.get(key) not in (None, known):
            raise self.error(key, f"this decoder supports only {known!r}")

    def error(self, key: str, why: str, fix: str = _FIX) -> ModelError:
        value = self.document.get(key)
        shown = "missing" if value is None else repr(value)[:MAX_SHOWN]
        return ModelError(f"{self._where}: {key}: {shown}", why=why, fix=fix)


def _mrope_section(keys: ConfigKeys) -> tuple[int, ...]:
    section = keys.document.get("mrope_section") or [8, 12, 12]
    if not isinstance(section, list) or any(
        type(count) is not int or not 0 < count < MOST for count in section
    ):
        raise keys.error("mrope_section", "should be a list of whole numbers above 0")
    return tuple(section)


def _scaling(keys: ConfigKeys) -> LinearScaling | Llama3Scaling | None:
    kind = keys.document.get("rope_type") or keys.document.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(keys.number("factor"))
    if kind == "llama3":
        trained = keys.whole("max_position_embeddings")
        slow, fast = keys.number("low_freq_factor"), keys.number("high_freq_factor")
        if not slow < fast:
            raise keys.error("high_freq_factor", f"should be more than low_freq_factor, {slow}")
        return Llama3Scaling(
            factor=keys.number("factor"),
            slow=slow,
            fast=fast,
            trained_tokens=keys.whole("original_max_position_embeddings", trained),
        )
    raise keys.error(
        "rope_type" if keys.document.get("rope_type") else "type",
        "the rotation may be 'default', 'linear' or 'llama3'",
    )
