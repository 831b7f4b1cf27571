"""
From a prompt to pieces of text: admission, tokens, the engine, stop strings, deadlines.

Every request that comes in leaves with an answer: its pieces, or one Failed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from runtime.engines.base.protocol import Ending
from runtime.server.admission import Limits, Load, Refused, refuse, time_allowed_s
from runtime.server.text import Codec, Detokenizer, StopScanner

GRACE_S = 1.0  # beyond a deadline, before an engine that does not say so is not waited for
LONG_PROMPT_CHARS = 20_000  # from here on another thread tokenises
Value = TypeVar("Value")

ENDINGS = {
    Ending.EXPIRED: (504, "deadline_exceeded", "the deadline passed"),
    Ending.NONFINITE: (500, "engine_nonfinite", "the model's numbers are not finite"),
    Ending.ERROR: (500, "engine_error", "the model failed"),
    Ending.DIED: (500, "engine_died", "the engine is gone"),
    Ending.ABANDONED: (503, "shutting_down", "the runtime left before the answer was done"),
}


class Tokens(Protocol):
    """
    The answer of an engine; see `engine.client.Answer`.
    """

    tokens: list[int]
    ending: Ending | None
    detail: str
    first_at_s: float | None  # time.monotonic

    async def more(self, seen: int) -> Sequence[int]: ...

    async def end(self) -> Ending: ...


class Engine(Protocol):
    """
    What this module needs of `engine.client.EngineClient`.
    """

    @property
    def in_flight(self) -> int: ...

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        timeout_s: float,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> tuple[int, Tokens]: ...

    def cancel(self, id: int) -> None: ...


class Failed(Exception):
    """
    A request that is answered with an error.
    """

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Ask:
    """
    What a client wants.

    Attributes:
        timeout_s: None for the longest that is allowed.
    """

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """
    Some text; the last piece of an answer also says why it is the last.

    Attributes:
        tokens: Generated so far.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: str | None = None


class Generator:
    """
    Answers prompts with one model.

    Args:
        on_first_token: Called with the seconds from the start of a request.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        limits: Limits,
        on_first_token: Callable[[float], None],
    ) -> None:
        self._engine, self._codec, self._limits = engine, codec, limits
        self._on_first_token = on_first_token
        self._mean_s = 0.0
        self._encoding = 0  # admitted, and still becoming tokens in another thread

    @property
    def load(self) -> Load:
        return Load(self._engine.in_flight + self._encoding, self._mean_s)

    async def whole(self, ask: Ask) -> Piece:
        """
        Return the whole answer as one piece.
        """
        # With stop strings each token has to be looked at as it comes.
        pieces = [piece async for piece in self.pieces(ask, at_once=not ask.stop)]
        last = pieces[-1]
        text = "".join(piece.text for piece in pieces)
        return Piece(text, last.tokens, last.prompt_tokens, last.finish_reason)

    async def pieces(self, ask: Ask, *, at_once: bool = False) -> AsyncGenerator[Piece, None]:
        """
        Yield the answer as it is generated, or *at_once*; the last piece has a finish_reason.

        Raises:
            Failed: Refused, late, or failed in the engine.
        """
        started_s = time.monotonic()
        allowed_s = time_allowed_s(ask.timeout_s, self._limits)
        prompt = await self._encode(ask.prompt)
        if refused := refuse(len(prompt), ask.max_tokens, self.load, self._limits):
            raise Failed(refused)
        id, answer = self._engine.submit(
            prompt,
            max_tokens=ask.max_tokens,
            timeout_s=allowed_s,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=ask.seed,
        )
        give_up_s = started_s + allowed_s + GRACE_S
        try:
            if at_once:
                await _by(give_up_s, answer.end())
            async with aclosing(self._read(answer, ask, len(prompt), give_up_s)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._engine.cancel(id)
            if answer.first_at_s is not None:
                self._on_first_token(answer.first_at_s - started_s)
            took_s = time.monotonic() - started_s
            self._mean_s += (took_s - self._mean_s) * (0.1 if self._mean_s else 1.0)

    async def _read(
        self, answer: Tokens, ask: Ask, prompt_tokens: int, give_up_s: float
    ) -> AsyncGenerator[Piece, None]:
        detokenizer, scanner = Detokenizer(self._codec), StopScanner(ask.stop)
        seen = 0
        while tokens := await _by(give_up_s, answer.more(seen)):
            seen += len(tokens)
            text = scanner.add(detokenizer.add(tokens))
            if scanner.is_stopped:
                yield Piece(text, seen, prompt_tokens, "stop")
                return
            if text:
                yield Piece(text, seen, prompt_tokens)
        assert answer.ending is not None
        if not answer.ending.is_good:
            raise Failed(_failure(answer.ending, answer.detail))
        text = scanner.add(detokenizer.add((), is_last=True), is_last=True)
        reason = "stop" if scanner.is_stopped else answer.ending.value
        yield Piece(text, seen, prompt_tokens, reason)

    async def _encode(self, prompt: str) -> list[int]:
        if len(prompt) < LONG_PROMPT_CHARS:
            return self._codec.encode(prompt)
        self._encoding += 1
        try:
            return await asyncio.to_thread(self._codec.encode, prompt)
        finally:
            self._encoding -= 1


async def _by(give_up_s: float, awaited: Coroutine[Any, Any, Value]) -> Value:
    # Around each wait and not around the generator: a timeout must not fire while its reader,
    # which may be the same task, waits for something else.
    try:
        async with asyncio.timeout(give_up_s - time.monotonic()):
            return await awaited
    except TimeoutError:
        raise Failed(_failure(Ending.EXPIRED, "the engine did not answer")) from None


def _failure(ending: Ending, detail: str) -> Refused:
    status, code, message = ENDINGS[ending]
    return Refused(status, code, f"{message}: {detail}" if detail else message)
