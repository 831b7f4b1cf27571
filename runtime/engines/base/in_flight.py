"""
The requests in flight and the tokens that each gets, of any engine, on asyncio.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

from runtime.engines.base.protocol import FinishReason
from runtime.engines.base.sampling import TokenLogprobs


class TokenStream:
    """
    The tokens of one request, as they come.

    Attributes:
        logprobs: One for each of *tokens* if the request asks for them, added before the token.
        prompt_logprobs: Of the prompt's tokens from the second on, if the request asks for them,
            added before the first token and the end.
        cached_tokens: Prompt tokens found in the cache; None where the engine does not say.
    """

    def __init__(self) -> None:
        self.first_at_s: float | None = None  # time.monotonic of the first token
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.cached_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self.detail = ""
        self.vector = ""  # of an embedding, in base64
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_end = False

    async def more(self, seen: int) -> Sequence[int]:
        """
        Return the tokens after the first *seen*, once there are any; empty at the end.
        """
        while len(self.tokens) <= seen and self.finish_reason is None:
            await self._wait(for_end=False)
        return self.tokens[seen:]

    async def end(self) -> FinishReason:
        """
        Wait for the end, without waking for each token.
        """
        while self.finish_reason is None:
            await self._wait(for_end=True)
        return self.finish_reason

    def push(self, token: int) -> None:
        if not self.tokens:
            self.first_at_s = time.monotonic()
        self.tokens.append(token)
        if not self._waits_for_end:
            self._wake()

    def finish(self, reason: FinishReason, detail: str = "") -> None:
        self.finish_reason, self.detail = reason, detail
        self._wake()

    async def _wait(self, *, for_end: bool) -> None:
        assert self._waiter is None, "a stream has one reader"
        self._waits_for_end = for_end
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InFlight:
    """
    The requests in flight, by id.

    Attributes:
        texts: Those of them that are texts to embed, one of many of a client's request.
    """

    def __init__(self) -> None:
        self.texts: set[int] = set()
        self._open: dict[int, TokenStream] = {}
        self._last_id = 0
        self._holds = 0
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._open)

    def new(self, *, is_text: bool = False) -> tuple[int, TokenStream]:
        """
        Return an id that was never used before, and its stream, in flight.
        """
        self._last_id += 1
        if is_text:
            self.texts.add(self._last_id)
        stream = self._open[self._last_id] = TokenStream()
        self._emptied.clear()
        return self._last_id, stream

    def get(self, id: int) -> TokenStream | None:
        return self._open.get(id)

    def push(self, id: int, token: int) -> None:
        if stream := self._open.get(id):
            stream.push(token)

    def embed(self, id: int, vector: str) -> None:
        if stream := self._open.get(id):
            stream.vector = vector

    def finish(self, id: int, reason: FinishReason, detail: str = "") -> bool:
        """
        End the stream of *id*; return whether it was in flight.
        """
        stream = self._open.get(id)
        self.forget(id)
        if stream is not None:
            stream.finish(reason, detail)
        return stream is not None

    def finish_all(self, reason: FinishReason, detail: str = "") -> list[int]:
        """
        End all streams; return the ids of their requests.
        """
        ids = list(self._open)
        for id in ids:
            self.finish(id, reason, detail)
        return ids

    def forget(self, id: int) -> bool:
        """
        Drop *id* without ending its stream, which has no reader; return whether it was in flight.
        """
        was_open = self._open.pop(id, None) is not None
        self.texts.discard(id)
        self._note_empty()
        return was_open

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """
        Keep `drain` waiting while the parts of one call follow each other.
        """
        self._holds += 1
        self._emptied.clear()
        try:
            yield
        finally:
            self._holds -= 1
            self._note_empty()

    def _note_empty(self) -> None:
        if not self._open and not self._holds:
            self._emptied.set()

    async def drain(self, timeout_s: float) -> int:
        """
        Wait until no request is in flight; return how many are after *timeout_s*.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        return len(self)
