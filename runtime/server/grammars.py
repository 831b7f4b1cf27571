"""
What a request wants its answer to match, and the check of it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from runtime.contract.visible_text import visible
from runtime.server.admission import Refusal
from runtime.server.errors import Failed
from runtime.structured import Grammar, GrammarError, GrammarKind, GrammarUnavailable
from runtime.structured.process import GrammarChecker

CHECK_THREADS = 1  # the checker does one at a time
WORDS = 500  # characters of what the compiler says


@dataclass(frozen=True, slots=True)
class AskedGrammar:
    """
    Attributes:
        field: The field of the body that has it.
    """

    field: str
    kind: GrammarKind
    text: str


class GrammarReader:
    """
    Args:
        checker: None for a model without structured output.
    """

    def __init__(self, checker: GrammarChecker | None) -> None:
        self._checker = checker
        self._pool = ThreadPoolExecutor(CHECK_THREADS, "grammar")

    async def read(self, asked: AskedGrammar) -> Grammar:
        """
        Raises:
            Failed: 400: it can't be compiled, matches no text, or takes too much.
        """
        if self._checker is None:
            raise _refused("no_structured_output", asked, "this model has no structured output")
        try:
            # A job that waits is dropped when its request is.
            job = self._pool.submit(self._checker.check, asked.kind, asked.text)
            return await asyncio.wrap_future(job)
        except GrammarError as error:
            raise _refused("grammar_refused", asked, str(error)) from None
        except GrammarUnavailable as error:
            why = f"this model has no structured output: {error}"
            raise _refused("no_structured_output", asked, why) from None


def _refused(code: str, asked: AskedGrammar, why: str) -> Failed:
    words = visible(why, limit=WORDS)
    return Failed(Refusal(400, code, f"{asked.field}: {words}", param=asked.field))
