"""
Tools and reasoning in what a model writes: from its text to calls, and from tools to a JSON schema.

Parsers are state machines over text, fed piece by piece.  Pure; knows no HTTP, tokens or templates.
"""

from runtime.tools.answer import Answer, Call, put_together
from runtime.tools.base import CallParser
from runtime.tools.choice import Tool, ToolUse, schema_of
from runtime.tools.detect import ToolSyntax, find_syntax
from runtime.tools.events import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    Content,
    Event,
    Markup,
    Reasoning,
)
from runtime.tools.observations import with_observations
from runtime.tools.parsers import make_parser, special_tokens_of
from runtime.tools.reasoning import THINK, THINK_END, ReasoningSplitter

__all__ = [
    "THINK",
    "THINK_END",
    "Answer",
    "ArgumentsDelta",
    "Call",
    "CallEnded",
    "CallParser",
    "CallStarted",
    "Content",
    "Event",
    "Markup",
    "Reasoning",
    "ReasoningSplitter",
    "Tool",
    "ToolSyntax",
    "ToolUse",
    "find_syntax",
    "make_parser",
    "put_together",
    "schema_of",
    "special_tokens_of",
    "with_observations",
]
