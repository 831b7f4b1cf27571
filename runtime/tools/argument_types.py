"""
The JSON type of an argument that a model writes without quotes.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.tools.json_scanner import JsonScanner

_MOST_LEVELS = 8  # of anyOf in anyOf, and of references


class ArgumentTypes:
    """
    The JSON types of a tool's arguments.  Each reference is followed once.

    Args:
        parameters: JSON schema of the arguments.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = parameters
        self._known: dict[str, frozenset[str] | None] = {}  # by reference

    def of(self, name: str) -> frozenset[str] | None:
        """
        Return the types that the argument *name* may have; None if its schema does not say.
        """
        properties = self._parameters.get("properties")
        return self._of(properties.get(name)) if isinstance(properties, dict) else None

    def _of(self, schema: object, level: int = 0) -> frozenset[str] | None:
        if not isinstance(schema, dict) or level == _MOST_LEVELS:
            return None
        match schema.get("type"):
            case str(name):
                return frozenset((name,))
            case list(names) if all(isinstance(name, str) for name in names):
                return frozenset(names)
        if isinstance(reference := schema.get("$ref"), str):
            return self._at(reference, level + 1)
        for key in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(key), list):
                return _together(self._of(option, level + 1) for option in options)
        if isinstance(parts := schema.get("allOf"), list):
            said = (self._of(part, level + 1) for part in parts)
            return next((types for types in said if types is not None), None)
        if isinstance(values := schema.get("enum"), list):
            return frozenset(map(_type_of, values))
        return frozenset((_type_of(schema["const"]),)) if "const" in schema else None

    def _at(self, reference: str, level: int) -> frozenset[str] | None:
        if reference not in self._known:
            self._known[reference] = None  # of one that leads back to itself
            head, *names = reference.split("/")
            part: object = self._parameters if head == "#" else None
            for name in names:
                if not isinstance(part, Mapping):
                    break
                part = part.get(name.replace("~1", "/").replace("~0", "~"))
            self._known[reference] = self._of(part, level)
        return self._known[reference]


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
