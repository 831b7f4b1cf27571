"""
Tools in the body of a chat.

Source: OpenAI's API reference and the parameters of its Python client 3.57, read 2026-11-26.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from runtime.server.schemas import Strict
from runtime.tools import Tool, ToolUse

MAX_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionBody(Strict):
    """
    Attributes:
        strict: Accepted, without an effect.
    """

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Strict):
    type: Literal["function"]
    function: FunctionBody

    @property
    def tool(self) -> Tool:
        """
        Return the tool, with its document as it was sent.
        """
        function = self.function
        return Tool(function.name, function.parameters or {}, self.model_dump(exclude_unset=True))


class NamedFunction(Strict):
    name: str


class NamedChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


def _with_names_of_their_own(tools: list[ToolBody] | None) -> list[ToolBody] | None:
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise PydanticCustomError("same_name", "two tools have the same name")
    return tools


def _of_the_tools(choice: "str | NamedChoice | None", info: ValidationInfo) -> Any:
    if choice in (None, "none", "auto") or "tools" not in info.data:
        return choice  # tools that are not valid have an error of their own
    names = [tool.function.name for tool in info.data["tools"] or ()]
    if not names:
        raise PydanticCustomError("no_tools", "only with tools")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise PydanticCustomError("no_such_tool", "names none of the tools")
    return choice


Tools = Annotated[
    list[ToolBody] | None,
    Field(max_length=MAX_TOOLS, fail_fast=True),
    AfterValidator(_with_names_of_their_own),
]
# The tags are no part of a field's path: `body.TRIED_TYPE`.
Choice = Annotated[
    Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("str")]
        | Annotated[NamedChoice, Tag("function-choice")],
        Discriminator(lambda choice: "function-choice" if isinstance(choice, dict) else "str"),
    ]
    | None,
    AfterValidator(_of_the_tools),
]


def use_of(
    tools: list[ToolBody] | None,
    choice: Literal["none", "auto", "required"] | NamedChoice | None,
    *,
    is_parallel: bool,
) -> ToolUse | None:
    """
    Return what the model may call; None for a prompt without tools.
    """
    if not tools or choice == "none":
        return None
    offered = tuple(body.tool for body in tools)
    if isinstance(choice, NamedChoice):
        return ToolUse(offered, "named", choice.function.name, is_parallel)
    return ToolUse(offered, choice or "auto", None, is_parallel)
