"""
The JSON type of an argument that a model writes without quotes.
"""

import json
from collections.abc import Iterable
from typing import Any

from runtime.tools.json_scanner import JsonScanner

_MOST_LEVELS = 8  # of anyOf in anyOf


def types_of(schema: object, level: int = 0) -> frozenset[str] | None:
    """
    Return the JSON types that *schema* allows; None if it does not say.
    """
    if not isinstance(schema, dict) or level == _MOST_LEVELS:
        return None
    match schema.get("type"):
        case str(name):
            return frozenset((name,))
        case list(names) if all(isinstance(name, str) for name in names):
            return frozenset(names)
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            return _together(types_of(option, level + 1) for option in options)
    if isinstance(values := schema.get("enum"), list):
        return frozenset(map(_type_of, values))
    return frozenset((_type_of(schema["const"]),)) if "const" in schema else None


def json_text(value: str, types: frozenset[str] | None) -> str:
    """
    Return *value* as JSON of one of *types*, as far as that can be.
    """
    stripped = value.strip()
    scanner = JsonScanner()
    end = scanner.feed(f"{stripped} ")  # a number ends with what follows it
    is_json = scanner.is_done and end == len(stripped)
    if is_json and (types is None or "string" not in types or types & _types_of_text(stripped)):
        return stripped
    return json.dumps(value, ensure_ascii=False)


def _together(found: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    every = list(found)
    return None if None in every else frozenset().union(*(each or () for each in every))


def _types_of_text(text: str) -> frozenset[str]:
    by_first = {"{": "object", "[": "array", '"': "string", "n": "null", "t": "boolean"}
    first = by_first.get(text[0], "boolean" if text[0] == "f" else "number")
    return frozenset((first, "integer") if first == "number" else (first,))


def _type_of(value: Any) -> str:
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "boolean"),
        (str, "string"),
        (int, "integer"),
        (float, "number"),
        (list, "array"),
        (dict, "object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
