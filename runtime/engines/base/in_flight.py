"""
What requests get, and who of them is in flight: of any engine, on asyncio.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from runtime.engines.base.protocol import Ending


class Answer:
    """
    The tokens of one request, as they come.
    """

    def __init__(self) -> None:
        self.first_at_s: float | None = None  # time.monotonic of the first token
        self.tokens: list[int] = []
        self.ending: Ending | None = None
        self.detail = ""
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_end = False

    async def more(self, seen: int) -> Sequence[int]:
        """
        Wait for tokens behind the first *seen*; none means that `ending` is set.
        """
        while len(self.tokens) <= seen and self.ending is None:
            await self._wait(for_end=False)
        return self.tokens[seen:]

    async def end(self) -> Ending:
        """
        Wait for the end, without waking for each token.
        """
        while self.ending is None:
            await self._wait(for_end=True)
        return self.ending

    def push(self, token: int) -> None:
        if not self.tokens:
            self.first_at_s = time.monotonic()
        self.tokens.append(token)
        if not self._waits_for_end:
            self._wake()

    def finish(self, ending: Ending, detail: str = "") -> None:
        self.ending, self.detail = ending, detail
        self._wake()

    async def _wait(self, *, for_end: bool) -> None:
        assert self._waiter is None, "an answer has one reader"
        self._waits_for_end = for_end
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Answers:
    """
    The requests in flight, by number.
    """

    def __init__(self) -> None:
        self._open: dict[int, Answer] = {}
        self._last_id = 0
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._open)

    def new(self) -> tuple[int, Answer]:
        """
        Return a number that was never used before, and its answer, in flight.
        """
        self._last_id += 1
        answer = self._open[self._last_id] = Answer()
        self._emptied.clear()
        return self._last_id, answer

    def push(self, id: int, token: int) -> None:
        if answer := self._open.get(id):
            answer.push(token)

    def finish(self, id: int, ending: Ending, detail: str = "") -> bool:
        """
        Return whether it was in flight until now.
        """
        answer = self._open.get(id)
        self.forget(id)
        if answer is not None:
            answer.finish(ending, detail)
        return answer is not None

    def finish_all(self, ending: Ending, detail: str = "") -> list[int]:
        """
        Return who they were.
        """
        left = list(self._open)
        for id in left:
            self.finish(id, ending, detail)
        return left

    def forget(self, id: int) -> bool:
        """
        Leave an answer without an end, for nobody waits for it; return whether it was in flight.
        """
        was_open = self._open.pop(id, None) is not None
        if not self._open:
            self._emptied.set()
        return was_open

    async def drain(self, timeout_s: float) -> int:
        """
        Wait until nothing is in flight; return how many are after *timeout_s*.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        return len(self)
