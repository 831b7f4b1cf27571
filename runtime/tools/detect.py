"""
Which form of calls a model writes, as its chat template tells.
"""

from dataclasses import dataclass

from runtime.contract.tool_parsers import AUTO, GLM, HERMES, LLAMA3_JSON, NONE, ToolParserName


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """
    Attributes:
        parser: Name of the parser of its calls.
        has_observations: The template knows calls as `metadata` and results as the role
            `observation`, as that of GLM-4 does, instead of `tool_calls` and the role `tool`.
    """

    parser: str
    has_observations: bool = False


def find_syntax(name: ToolParserName, template: str, *, reads_tools: bool) -> ToolSyntax | None:
    """
    Return the syntax of the parser *name*; None if the model has none.

    AUTO looks for the marks of a family in a template that reads `tools`.

    Args:
        template: Text of the chat template that a request with tools gets.
    """
    if name == NONE:
        return None
    parser = name if name != AUTO else (_detected(template) if reads_tools else None)
    if parser is None:
        return None
    has_observations = "observation" in template and "tool_calls" not in template
    return ToolSyntax(parser, has_observations)


def _detected(template: str) -> str | None:
    if "<function=" in template:  # Qwen3-Coder, which has <tool_call> around another form
        return None
    if "<arg_key>" in template or ("[gMASK]" in template and "observation" in template):
        return GLM
    if "<tool_call>" in template and '"arguments' in template.replace("\\", ""):
        return HERMES
    if "<|start_header_id|>" in template and '"parameters' in template.replace("\\", ""):
        return LLAMA3_JSON
    return None
