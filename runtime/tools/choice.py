"""
The tools that a request offers, and which of them the model may call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_SCHEMA_DEPTH = 64
_VALUES = ("const", "default", "enum", "examples")  # hold values, which are no schemas


@dataclass(frozen=True, slots=True)
class Tool:
    """
    Attributes:
        parameters: JSON schema of its arguments.
        document: The tool as the client sent it, for the chat template.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """
        The schemas of its arguments by their names.
        """
        properties = self.parameters.get("properties")
        return properties if isinstance(properties, dict) else {}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """
    Attributes:
        tools: Those in the prompt; not empty.
        choice: Whether the model may call one, must, or must call `named`.
        is_parallel: Whether an answer may have several calls.
    """

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required", "named"] = "auto"
    named: str | None = None
    is_parallel: bool = True

    @property
    def callable_tools(self) -> Sequence[Tool]:
        """
        The tools that the answer may call.
        """
        if self.named is None:
            return self.tools
        return [tool for tool in self.tools if tool.name == self.named]


def schema_of(use: ToolUse) -> dict[str, Any] | None:
    """
    Return the JSON schema of an answer that is calls alone; None if it may be a text.

    Such an answer is a list of `{"name", "arguments"}`, which the parser `json` reads.

    Raises:
        ValueError: The parameters of a tool are nested too deeply; names the tool.
    """
    if use.choice == "auto":
        return None
    calls, definitions = [], {}
    for tool in use.callable_tools:
        pointer = f"#/$defs/{tool.name}"
        try:
            definitions[tool.name] = _moved(dict(tool.parameters) or {"type": "object"}, pointer)
        except _TooDeep:
            raise ValueError(
                f"parameters of {tool.name}: more than {MAX_SCHEMA_DEPTH} levels"
            ) from None
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": {"$ref": pointer}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    is_one = use.choice == "named" or not use.is_parallel
    return {
        "type": "array",
        "minItems": 1,
        **({"maxItems": 1} if is_one else {}),
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "$defs": definitions,
    }


class _TooDeep(Exception):
    pass


def _moved(schema: Any, pointer: str, level: int = 0) -> Any:
    """
    Return *schema* as it stands at *pointer* of another one: its references follow it.
    """
    if level > MAX_SCHEMA_DEPTH:
        raise _TooDeep
    if isinstance(schema, list):
        return [_moved(each, pointer, level + 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = pointer + value[1:]
        elif key in _VALUES:
            moved[key] = value
        else:
            moved[key] = _moved(value, pointer, level + 1)
    return moved
