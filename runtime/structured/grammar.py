"""
What an answer must match.  Nouns only: imports no compiler.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtime.structured.schema import readable

MAX_CHARACTERS = 64 << 10  # of a grammar's text
MAX_CHOICES = 1024


class GrammarKind(StrEnum):
    """
    The language of a grammar; the values are vLLM's names.
    """

    JSON = "json"  # a JSON Schema
    REGEX = "regex"
    CHOICE = "choice"  # a JSON list of texts
    GRAMMAR = "grammar"  # Lark as llguidance reads it, or GBNF


# Not slots: `vars` is how the wire protocol writes it.
@dataclass(frozen=True)
class Grammar:
    """
    A grammar that was compiled once, within the limits.

    Attributes:
        text: As the client sent it; JSON for a schema and for choices.
        compiled: The same in llguidance's own form.
    """

    kind: GrammarKind
    text: str
    compiled: str

    def as_vllm(self) -> dict[str, Any]:
        """
        Return it as vLLM's `structured_outputs`.
        """
        if self.kind in (GrammarKind.REGEX, GrammarKind.GRAMMAR):
            return {self.kind.value: self.text}
        text = readable(self.text) if self.kind == GrammarKind.JSON else self.text
        return {self.kind.value: json.loads(text)}
