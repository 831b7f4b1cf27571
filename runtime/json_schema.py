"""
Where a JSON Schema has other schemas.  Pure.
"""

from collections.abc import Callable
from typing import Any

# Keywords that hold schemas by names of the client's own, which may be those of keywords.
_NAMED = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties",
          "properties")  # fmt: skip
_VALUES = ("const", "default", "enum", "examples")  # hold values, which are no schemas


class TooDeep(Exception):
    """
    A schema is nested too deeply.
    """


def mapped(
    schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], most_levels: int
) -> Any:
    """
    Return *schema* with each schema in it as *change* returns it, the inner ones first.

    Raises:
        TooDeep: It has objects and lists within each other on more than *most_levels* levels.
    """
    if most_levels < 0:
        raise TooDeep
    if isinstance(schema, list):
        return [mapped(each, change, most_levels - 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in _VALUES:
            found[key] = value
        elif key in _NAMED and isinstance(value, dict):
            inner = value.items()
            found[key] = {name: mapped(each, change, most_levels - 2) for name, each in inner}
        else:
            found[key] = mapped(value, change, most_levels - 1)
    return change(found)
