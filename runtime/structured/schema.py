"""
JSON Schemas as llguidance reads them.  Pure.
"""

import json
from typing import Any

from runtime.json_schema import TooDeep, mapped
from runtime.structured.errors import GrammarError

OPTIONS = "x-guidance"  # key of a schema with llguidance's options
# Source: JSON Schema Validation 2020-12, section 7.3.
FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "idn-email", "idn-hostname", "ipv4",
     "ipv6", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer", "time",
     "uri", "uri-reference", "uri-template", "uuid")
)  # fmt: skip
_MOST_LEVELS = 200


def readable(text: str) -> str:
    """
    Return the schema *text* without what has no effect, which llguidance refuses.

    Raises:
        GrammarError: It has llguidance's options, or is nested too deeply.
        ValueError: It is not JSON.
    """
    schema = json.loads(text)
    if isinstance(schema, dict) and OPTIONS in schema:
        raise GrammarError(f"the schema has the key {OPTIONS}, which is not supported")
    try:
        return json.dumps(mapped(schema, _without_neutral, _MOST_LEVELS))
    except TooDeep:
        raise GrammarError("it is nested too deeply") from None


def _without_neutral(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if not _is_neutral(key, value)}


def _is_neutral(key: str, value: object) -> bool:
    match key:
        case "uniqueItems":
            return value is False
        case "propertyNames":  # zod says that names are strings
            return value is True or value in ({}, {"type": "string"})
        case "unevaluatedItems" | "unevaluatedProperties":
            return value is True or value == {}
        case "dependencies" | "dependentRequired" | "dependentSchemas":
            return value == {}
        case "format":  # others, such as pydantic's binary, are a note for readers
            return isinstance(value, str) and value not in FORMATS
    return False
