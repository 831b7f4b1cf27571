"""
The tools that a request offers, and which of them the model may call.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.json_schema import TooDeep, mapped

MAX_SCHEMA_DEPTH = 64


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
        ValueError: The parameters of a tool are nested too deeply or are no object; names the tool.
    """
    if use.choice == "auto":
        return None
    calls, definitions = [], {}
    for tool in use.callable_tools:
        pointer = f"#/$defs/{tool.name}"
        try:
            definitions[tool.name] = _of_object(_moved(tool.parameters, pointer))
        except TooDeep:
            raise ValueError(
                f"parameters of {tool.name}: more than {MAX_SCHEMA_DEPTH} levels"
            ) from None
        except ValueError as error:
            raise ValueError(f"parameters of {tool.name}: {error}") from None
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


def _moved(schema: Mapping[str, Any], pointer: str) -> dict[str, Any]:
    """
    Return *schema* as it stands at *pointer* of another one: its references follow it.

    Raises:
        TooDeep: It is nested too deeply.
    """

    def change(schema: dict[str, Any]) -> dict[str, Any]:
        reference = schema.get("$ref")
        if isinstance(reference, str) and re.match("#(/|$)", reference):  # else of an anchor
            schema["$ref"] = pointer + reference[1:]
        return schema

    moved: dict[str, Any] = mapped(dict(schema), change, MAX_SCHEMA_DEPTH)
    moved.pop("$id", None)  # references would be read from it on
    return moved


def _of_object(schema: dict[str, Any]) -> dict[str, Any]:
    """
    Return *schema* for objects alone: arguments of another type are no call.

    Raises:
        ValueError: It allows none.
    """
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        raise ValueError("should have the type object")
    return schema | {"type": "object"}
