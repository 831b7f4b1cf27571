"""
One answer and its grammar, token by token.  Imports no compiler.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.structured.errors import GrammarError

if TYPE_CHECKING:
    import llguidance


class AnswerState:
    """
    One answer and its grammar.

    Attributes:
        accepted: Number of its tokens that the grammar has seen.
    """

    def __init__(self, matcher: "llguidance.LLMatcher", compiled: str) -> None:
        self.matcher, self.compiled = matcher, compiled
        self.accepted = 0

    @property
    def is_complete(self) -> bool:
        """
        Whether the answer matches, and no token can follow.
        """
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def accept(self, tokens: Sequence[int]) -> None:
        """
        Raises:
            GrammarError: The grammar does not allow them, or takes too much.
        """
        self.accepted += len(tokens)
        if not self.matcher.consume_tokens(list(tokens)):
            raise GrammarError(self.matcher.get_error())


@dataclass(frozen=True, slots=True)
class TokenMask:
    """
    The tokens that may come next.

    Attributes:
        words: A bit for each token id, the lowest bit first, in int32 words of this machine's byte
            order; ceil(vocabulary / 32) of them.
        may_end: Whether the answer matches as it is.
        is_empty: Whether no token may come, stop tokens included.
    """

    words: bytes
    may_end: bool
    is_empty: bool
