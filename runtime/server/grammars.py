"""
What a request wants its answer to match, and the check of it.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from runtime.contract import QUEUE_FULL
from runtime.contract.visible_text import visible
from runtime.server.admission import Refusal
from runtime.server.caller import current_caller
from runtime.server.check_queue import CheckQueue
from runtime.server.errors import Failed
from runtime.structured import (
    CheckFailed,
    Grammar,
    GrammarError,
    GrammarKind,
    GrammarUnavailable,
)
from runtime.structured.process import GrammarChecker

log = logging.getLogger("runtime.server")

CHECK_THREADS = 1  # the checker does one at a time
MAX_WAITING = 16  # checks of one API key, but for the same grammar
WORDS = 500  # characters of what the compiler says
_FULL = Refusal(
    503,
    "queue_full",
    f"{MAX_WAITING} new grammars of this API key wait to be checked",
    retry_after_s=1,
    excuse=QUEUE_FULL,
)


@dataclass(frozen=True, slots=True)
class AskedGrammar:
    """
    Attributes:
        field: The field of the body that has it.
    """

    field: str
    kind: GrammarKind
    text: str


@dataclass(slots=True, eq=False)
class _Check:
    """
    A check that waits or runs.

    Attributes:
        readers: Requests that wait for it, of one key.
    """

    asked: AskedGrammar
    outcome: asyncio.Future[Grammar | Exception]
    readers: int = 0


class GrammarReader:
    """
    Checks grammars one at a time, in a thread, fairly between API keys.

    Args:
        checker: None for a model without structured output.
    """

    def __init__(self, checker: GrammarChecker | None) -> None:
        self._checker = checker
        self._pool = ThreadPoolExecutor(CHECK_THREADS, "grammar")
        self._queue: CheckQueue[_Check] = CheckQueue()
        self._open: dict[tuple[str, GrammarKind, str], _Check] = {}  # waiting or running
        self._running: asyncio.Task[None] | None = None

    async def read(self, asked: AskedGrammar) -> Grammar:
        """
        Raises:
            Failed: 400: it can't be compiled, matches no text, or takes too much.  503: too many
                checks of the same API key wait, or the check itself failed.
        """
        if self._checker is None:
            raise _refused("no_structured_output", asked, "this model has no structured output")
        try:
            grammar = self._checker.kept.find(asked.kind, asked.text)
            return grammar or await self._wait(current_caller().name, asked)
        except GrammarError as error:
            raise _refused("grammar_refused", asked, str(error)) from None
        except CheckFailed as error:
            raise _not_checked(asked, error) from None
        except GrammarUnavailable as error:
            why = f"this model has no structured output: {error}"
            raise _refused("no_structured_output", asked, why) from None

    async def _wait(self, key: str, asked: AskedGrammar) -> Grammar:
        id = key, asked.kind, asked.text
        check = self._open.get(id)
        if check is None:
            if key and self._queue.count(key) >= MAX_WAITING:
                raise Failed(_FULL)
            check = _Check(asked, asyncio.get_running_loop().create_future())
            self._open[id] = check
            self._queue.push(key, check)
            if self._running is None:
                self._running = asyncio.create_task(self._run())
        check.readers += 1
        try:
            # Other requests may wait for the same.
            outcome = await asyncio.shield(check.outcome)
        finally:
            check.readers -= 1
            if not check.readers:  # one that runs already goes on, and is remembered
                self._queue.remove(key, check)
                if self._open.get(id) is check:
                    del self._open[id]
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)
        return outcome

    async def _run(self) -> None:
        """
        Do all checks that wait.
        """
        loop = asyncio.get_running_loop()
        try:
            while (following := self._queue.pop()) is not None:
                key, check = following
                began_s = time.monotonic()
                outcome = await loop.run_in_executor(self._pool, self._check, check.asked)
                self._queue.charge(key, time.monotonic() - began_s)
                if not check.outcome.done():
                    check.outcome.set_result(outcome)
        finally:
            self._running = None

    def _check(self, asked: AskedGrammar) -> Grammar | Exception:
        assert self._checker is not None, "read checks it"
        try:
            return self._checker.check(asked.kind, asked.text)
        except Exception as error:  # each reader raises it
            return error


def _not_checked(asked: AskedGrammar, error: CheckFailed) -> Failed:
    log.error("grammar.check_failed field=%s why=%s", asked.field, error)
    message = "the grammar could not be checked; send the request again"
    return Failed(Refusal(503, "grammar_check_failed", message, retry_after_s=1))


def _refused(code: str, asked: AskedGrammar, why: str) -> Failed:
    words = visible(why, limit=WORDS)
    return Failed(Refusal(400, code, f"{asked.field}: {words}", param=asked.field))
