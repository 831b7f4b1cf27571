"""
A part of a loaded fleet as the fleet file has it, with units, so that it can be loaded again.
"""

from typing import Any

from pydantic import BaseModel, BeforeValidator

from deploy.units import parse_duration_s, parse_ratio


def as_file(model: BaseModel) -> dict[str, Any]:
    """
    Return *model* as plain values that its class accepts and turns into an equal model.
    """
    document = {}
    for name, field in type(model).model_fields.items():
        parsers = {m.func for m in field.metadata if isinstance(m, BeforeValidator)}
        document[name] = _value(getattr(model, name), parsers)
    return document


def _value(value: Any, parsers: set[Any]) -> Any:
    if isinstance(value, BaseModel):
        return as_file(value)
    if isinstance(value, tuple):
        return [_value(one, set()) for one in value]
    if parse_duration_s in parsers and value is not None:
        return f"{_decimal(value)}s"
    if parse_ratio in parsers and value is not None:
        return f"{_decimal(value * 100)}%"
    return value


def _decimal(value: float) -> str:
    # Nine decimals are what the parser of units takes.
    return f"{value:.9f}".rstrip("0").rstrip(".")
