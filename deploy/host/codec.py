"""
Typed messages to JSON and back, strictly.  Knows no message; `protocol` has them all.

Supports what the protocol needs: frozen dataclasses, text, whole numbers, numbers, booleans,
enums, Optional, tuples of one type and mappings from text.  `Pattern` and `Range` narrow a value.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

Message = TypeVar("Message")
_UNIONS = (typing.Union, getattr(types, "UnionType", None))  # the second since Python 3.10

_PLAIN = frozenset({str, int, float, bool, type(None)})  # JSON values as they are

WHOLE_MAX = 2**63 - 1


class Malformed(ValueError):
    """
    A value is not of the type that the message declares; the text names its place.
    """


class Pattern(NamedTuple):
    """
    Text must match *regex* as a whole; *meaning* says it in words.
    """

    regex: str
    meaning: str


class Range(NamedTuple):
    """
    A number must lie from *low* to *high*, both included.
    """

    low: float
    high: float


class OneOf(NamedTuple):
    """
    Text must be one of *values*.
    """

    values: tuple[str, ...]


def encode(value: Any) -> Any:
    """
    Return *value* as plain JSON values.
    """
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: encode(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(one) for one in value]
    return value


def decode(kind: type[Message], value: object, where: str = "") -> Message:
    """
    Return *value*, plain JSON values, as a *kind*.

    Whole numbers are not negative, numbers are finite, unknown keys are refused.  In text, "?"
    replaces each byte of a file name that is not UTF-8 (a lone surrogate): output would refuse it.

    Args:
        where: Path of *value* in its document, for the error.

    Raises:
        Malformed: A value is of another type, out of range, missing or unknown.
    """
    any_kind: Any = kind
    result: Message = _decoder(any_kind)(value, where or kind.__name__)
    return result


@cache
def _decoder(kind: Any) -> Callable[[Any, str], Any]:
    """
    Return the function that decodes a value, at a place, as a *kind*; made once for each.
    """
    if kind is Any:
        return lambda value, _where: value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        plain, limits = _decoder(arguments[0]), arguments[1:]
        return lambda value, where: _limited(plain(value, where), limits, where)
    if origin in _UNIONS:
        present = _decoder(arguments[0])
        return lambda value, where: None if value is None else present(value, where)
    if origin is tuple:
        return _tuple(_decoder(arguments[0]))
    if origin is dict:
        return _dict(_decoder(arguments[0]), _decoder(arguments[1]))
    if kind is str:
        return _text
    if kind is int:
        return _whole_number
    return lambda value, where: _scalar(kind, value, where)


def _tuple(item: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    def decode_tuple(value: Any, where: str) -> tuple[Any, ...]:
        _expect(isinstance(value, list), "a list", value, where)
        return tuple(item(one, f"{where}[{i}]") for i, one in enumerate(value))

    return decode_tuple


def _dict(
    key_of: Callable[[Any, str], Any], item: Callable[[Any, str], Any]
) -> Callable[[Any, str], Any]:
    def decode_dict(value: Any, where: str) -> dict[Any, Any]:
        _expect(isinstance(value, dict), "an object", value, where)
        return {
            key_of(key, f"{where} key"): item(one, f"{where}.{key}") for key, one in value.items()
        }

    return decode_dict


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _malformed("text", value, where)
    return value if value.isascii() else value.encode(errors="replace").decode()


def _whole_number(value: Any, where: str) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 0 <= value <= WHOLE_MAX:
        raise _malformed("a whole number, 0 or more", value, where)
    return int(value)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise _malformed(" or ".join(str(m.value) for m in kind), value, where) from None
    if kind is bool:
        _expect(isinstance(value, bool), "true or false", value, where)
    elif kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Comparisons, unlike conversions, take a whole number of any size.
        is_finite = is_number and abs(value) <= sys.float_info.max
        _expect(is_finite, "a finite number", value, where)
        return float(value)
    else:
        raise TypeError(f"{where}: no message may hold a {kind!r}")
    return value


def _dataclass(kind: Any) -> Callable[[Any, str], Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    decoders = {field.name: _decoder(hints[field.name]) for field in dataclasses.fields(kind)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def decode_dataclass(value: Any, where: str) -> Any:
        _expect(isinstance(value, dict), "an object", value, where)
        if not value.keys() <= decoders.keys():
            unknown = sorted(set(value) - set(decoders))
            raise Malformed(f"{where[:200]}: unknown key {', '.join(unknown)[:200]}")
        given = {}
        for name, decoder in decoders.items():
            if name in value:
                given[name] = decoder(value[name], f"{where}.{name}")
            elif name in required:
                raise Malformed(f"{where[:200]}.{name}: missing")
        return kind(**given)

    return decode_dataclass


def _limited(value: Any, limits: tuple[Any, ...], where: str) -> Any:
    for limit in limits:
        if isinstance(limit, Pattern):
            _expect(re.fullmatch(limit.regex, value) is not None, limit.meaning, value, where)
        elif isinstance(limit, Range):
            is_inside = limit.low <= value <= limit.high
            _expect(is_inside, f"from {limit.low:g} to {limit.high:g}", value, where)
        elif isinstance(limit, OneOf):
            _expect(value in limit.values, " or ".join(limit.values), value, where)
    return value


def _expect(is_right: bool, wanted: str, value: object, where: str) -> None:
    if not is_right:
        raise _malformed(wanted, value, where)


def _malformed(wanted: str, value: object, where: str) -> Malformed:
    return Malformed(f"{where[:200]}: should be {wanted}, got {_SHORT.repr(value)}")


_SHORT = reprlib.Repr()  # looks at the first items and levels alone, however large the value is
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
