"""
Structured output: grammars that an answer must match, and the tokens that they allow next.

A grammar of a client is compiled first in a process of its own, with bounds on time and memory.
Knows no HTTP, no torch and no engine.
"""

from runtime.structured.errors import CheckFailed, GrammarError, GrammarUnavailable
from runtime.structured.grammar import Grammar, GrammarKind

__all__ = ["CheckFailed", "Grammar", "GrammarError", "GrammarKind", "GrammarUnavailable"]
