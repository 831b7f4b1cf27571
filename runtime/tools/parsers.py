"""
The parsers of calls by name.
"""

from collections.abc import Sequence

from runtime.contract.tool_parsers import GLM, HERMES, JSON, LLAMA3_JSON
from runtime.tools.base import CallParser
from runtime.tools.choice import Tool
from runtime.tools.glm import GLM_MARKS, GlmParser
from runtime.tools.json_calls import CLOSE, OPEN, PYTHON_TAG, BareJsonParser, HermesParser

_MARKS = {
    GLM: GLM_MARKS,
    HERMES: (OPEN, CLOSE),
    LLAMA3_JSON: (PYTHON_TAG,),
    JSON: (),
}


def special_tokens_of(name: str) -> tuple[str, ...]:
    """
    Return the marks of the parser *name*, which may be special tokens of a model.
    """
    return _MARKS[name]


def make_parser(name: str, tools: Sequence[Tool]) -> CallParser:
    """
    Return the parser *name* for the calls of *tools*.
    """
    names = frozenset(tool.name for tool in tools)
    if name == GLM:
        return GlmParser(tools)
    if name == HERMES:
        return HermesParser(names)
    return BareJsonParser(names, PYTHON_TAG if name == LLAMA3_JSON else None)
