"""
The sampling that a model's publisher recommends, from its `generation_config.json`.  Pure.

Source: GenerationConfig in transformers 5.24.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """
    What a request gets that does not say otherwise; None: the file does not say either.

    Attributes:
        temperature: 0 is greedy.
        top_k: Number of tokens to choose from; None also where the file switches it off.
        stop_token_ids: Token ids that end an answer; empty: those of config.json.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: frozenset[int] = frozenset()


def read_generation_defaults(document: Mapping[str, Any]) -> GenerationDefaults:
    """
    Read a `generation_config.json`; null means absent.

    `do_sample: false` is a temperature of 0.  Without the key the temperature counts, as in vLLM.

    Raises:
        ValueError: A value is out of its range; names the key.
    """
    temperature = _number(document, "temperature", 0, 2)
    top_k = _number(document, "top_k", -1, 1 << 31)
    if top_k is not None and top_k != int(top_k):
        raise ValueError(f"top_k: {top_k!r}: should be a whole number")
    return GenerationDefaults(
        temperature=0.0 if document.get("do_sample") is False else temperature,
        top_p=_positive(document, "top_p", 1),
        top_k=int(top_k) if top_k is not None and top_k > 0 else None,
        min_p=_number(document, "min_p", 0, 1),
        repetition_penalty=_positive(document, "repetition_penalty", 100),
        stop_token_ids=_token_ids(document, "eos_token_id"),
    )


def _positive(document: Mapping[str, Any], key: str, most: float) -> float | None:
    value = _number(document, key, 0, most)
    if value == 0:
        raise ValueError(f"{key}: should be above 0")
    return value


def _number(document: Mapping[str, Any], key: str, least: float, most: float) -> float | None:
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"{key}: {value!r}: should be a number")
    if not least <= value <= most:
        raise ValueError(f"{key}: {value!r}: should be from {least} to {most}")
    return float(value)


def _token_ids(document: Mapping[str, Any], key: str) -> frozenset[int]:
    value = document.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, int) or each < 0:
            raise ValueError(f"{key}: {each!r}: should be a token id, or a list of them")
    return frozenset(ids)
