"""
The defaults that a model's generation_config.json has for the sampling fields of OpenAI's routes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from runtime.chat.files import read_json
from runtime.contract.chat_files import GENERATION_CONFIG
from runtime.contract.errors import ModelError
from runtime.server.schemas import Body

Kind = TypeVar("Kind", bound=Body)

# Least and most of each key, as the fields of a request have them.
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
}
WHOLE = frozenset({"top_k"})


def read_generation_defaults(model_dir: Path) -> dict[str, float]:
    """
    Return the defaults of the model in *model_dir* by field, those that it names.

    With `do_sample: false` the temperature is 0.

    Raises:
        ModelError: A key has a value that no request may have.
    """
    path = model_dir / GENERATION_CONFIG
    document = read_json(path) or {}
    defaults: dict[str, float] = {}
    for key, (least, most) in RANGES.items():
        value = document.get(key)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most or (key in WHOLE and value != int(value)):
            raise ModelError(
                f"{path}: {key}: {_shown(value)}",
                why=f"should be a number from {least} to {most}",
                fix="correct it and bundle the model again, or set generation_defaults: openai",
            )
        defaults[key] = int(value) if key in WHOLE else value
    if document.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return defaults


def with_defaults(body: Kind, defaults: Mapping[str, Any]) -> Kind:
    """
    Return *body* with *defaults* for the fields that it leaves out.
    """
    fields = type(body).model_fields
    absent = [name for name in defaults if name in fields and getattr(body, name) is None]
    return body.model_copy(update={name: defaults[name] for name in absent}) if absent else body


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return repr(value)[:80]
