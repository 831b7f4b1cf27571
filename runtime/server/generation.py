"""
From a prompt to text: admission, tokenizing, the engine, stop strings, deadlines.

Every admitted request ends: with its text, or with one Failed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.contract import CLIENT_DEADLINE
from runtime.engines.base.client import Client
from runtime.engines.base.in_flight import TokenStream
from runtime.engines.base.protocol import FinishReason
from runtime.engines.base.sampling import SamplingParams
from runtime.server.admission import AdmissionLimits, CurrentLoad, Refusal, refuse, time_allowed_s
from runtime.server.text import Codec, Detokenizer, StopScanner

GRACE_S = 1.0  # wait for the engine's own EXPIRED after a deadline
LONG_PROMPT_CHARS = 20_000  # longer prompts are tokenized in another thread
# A prompt of 8 MiB takes a thread ten seconds and most of a GiB: few at a time.
LONG_PROMPT_THREADS = 2
Value = TypeVar("Value")

FAILURES = {
    FinishReason.EXPIRED: (504, "deadline_exceeded", "the deadline passed"),
    FinishReason.NONFINITE: (500, "engine_nonfinite", "the model's logits are not finite"),
    FinishReason.ERROR: (500, "engine_error", "the model failed"),
    # Not a 500: HAProxy repeats that on the other slot, whose engine the request could end too.
    FinishReason.DIED: (502, "engine_died", "the engine process ended"),
    FinishReason.ABANDONED: (
        503,
        "shutting_down",
        "the runtime shut down before the answer was complete",
    ),
}


class Failed(Exception):
    """
    The request ends with an error response.
    """

    def __init__(self, refused: Refusal) -> None:
        super().__init__(refused.message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """
    What a client asks for.

    Attributes:
        timeout_s: None for the longest that is allowed.
    """

    prompt: str
    params: SamplingParams
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """
    A request with its prompt in tokens; its text is no longer needed.

    Attributes:
        started_s: When it came, on the monotonic clock.
        allowed_s: Time for the whole answer, from then on.
        late_excuse: Excuse of a late answer: the client asked for less time than it may have.
    """

    prompt: list[int]
    params: SamplingParams
    stop: tuple[str, ...]
    started_s: float
    allowed_s: float
    late_excuse: str | None = None

    @property
    def give_up_s(self) -> float:
        """
        When the engine is no longer waited for, on the monotonic clock.
        """
        return self.started_s + self.allowed_s + GRACE_S


@dataclass(frozen=True, slots=True)
class TextDelta:
    """
    The next part of an answer's text; the last one has a finish_reason.

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
        engine: Client,
        codec: Codec,
        limits: AdmissionLimits,
        on_first_token: Callable[[float], None],
    ) -> None:
        self._engine, self._codec, self._limits = engine, codec, limits
        self._on_first_token = on_first_token
        self._mean_s = 0.0
        self._encoding = 0  # long prompts that wait for a thread or are tokenized
        self._long_prompts = ThreadPoolExecutor(LONG_PROMPT_THREADS, "tokenize")

    @property
    def load(self) -> CurrentLoad:
        return CurrentLoad(self._engine.in_flight + self._encoding, self._mean_s)

    def refuse_if_full(self) -> None:
        """
        Raises:
            Failed: The queue is full: a body need not be read.
        """
        if refused := refuse(1, 0, self.load, self._limits):
            raise Failed(refused)

    async def admit(self, request: GenerationRequest) -> AdmittedRequest:
        """
        Return *request* with its prompt in tokens.

        Raises:
            Failed: It is refused, or tokenizing it took longer than it has time.
        """
        started_s = time.monotonic()
        allowed_s = time_allowed_s(request.timeout_s, self._limits)
        excuse = CLIENT_DEADLINE if allowed_s < self._limits.request_timeout_s else None
        prompt = await self._encode(request, started_s + allowed_s, excuse)
        self._refuse(len(prompt), request)
        return AdmittedRequest(prompt, request.params, request.stop, started_s, allowed_s, excuse)

    async def whole(self, request: AdmittedRequest) -> TextDelta:
        """
        Return the whole answer as one delta.
        """
        # With stop strings each token is checked as it comes.
        deltas = [delta async for delta in self.deltas(request, at_once=not request.stop)]
        last = deltas[-1]
        text = "".join(delta.text for delta in deltas)
        return TextDelta(text, last.tokens, last.prompt_tokens, last.finish_reason)

    async def deltas(
        self, request: AdmittedRequest, *, at_once: bool = False
    ) -> AsyncGenerator[TextDelta, None]:
        """
        Yield the answer as it is generated, or *at_once*; the last delta has a finish_reason.

        Raises:
            Failed: Late, or failed in the engine.
        """
        id, stream = self._engine.submit(request.prompt, request.params, request.allowed_s)
        try:
            if at_once:
                await _by(request.give_up_s, stream.end())
            async with aclosing(self._read(stream, request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._engine.cancel(id)
            if stream.first_at_s is not None:
                self._on_first_token(stream.first_at_s - request.started_s)
            took_s = time.monotonic() - request.started_s
            self._mean_s += (took_s - self._mean_s) * (0.1 if self._mean_s else 1.0)

    async def _read(
        self, stream: TokenStream, request: AdmittedRequest
    ) -> AsyncGenerator[TextDelta, None]:
        detokenizer, scanner = Detokenizer(self._codec), StopScanner(request.stop)
        prompt_tokens = len(request.prompt)
        seen = 0
        while tokens := await _by(request.give_up_s, stream.more(seen)):
            seen += len(tokens)
            text = scanner.add(detokenizer.add(tokens))
            if scanner.is_stopped:
                yield TextDelta(text, seen, prompt_tokens, "stop")
                return
            if text:
                yield TextDelta(text, seen, prompt_tokens)
        assert stream.finish_reason is not None
        if not stream.finish_reason.is_good:
            is_late = stream.finish_reason is FinishReason.EXPIRED
            excuse = request.late_excuse if is_late else None
            raise Failed(_failure(stream.finish_reason, stream.detail, excuse))
        text = scanner.add(detokenizer.add((), is_last=True), is_last=True)
        reason = "stop" if scanner.is_stopped else stream.finish_reason.value
        yield TextDelta(text, seen, prompt_tokens, reason)

    async def _encode(
        self, request: GenerationRequest, late_s: float, excuse: str | None
    ) -> list[int]:
        if len(request.prompt) < LONG_PROMPT_CHARS:
            return self._codec.encode(request.prompt)
        # By its size alone: tokenizing takes seconds, counting milliseconds.
        enough = self._limits.context_tokens + 1
        self._refuse(max(self._codec.least_tokens(request.prompt, enough), 1), request)
        loop = asyncio.get_running_loop()
        self._encoding += 1
        job = self._long_prompts.submit(self._codec.encode, request.prompt)
        # Of the thread, which goes on where its request has been given up.
        job.add_done_callback(lambda _: self._encoded(loop))
        return await _by(late_s, _result(job), excuse)

    def _encoded(self, loop: asyncio.AbstractEventLoop) -> None:
        def count() -> None:
            self._encoding -= 1

        with suppress(RuntimeError):  # the loop ended before the thread
            loop.call_soon_threadsafe(count)

    def _refuse(self, prompt_tokens: int, request: GenerationRequest) -> None:
        if refused := refuse(prompt_tokens, request.params.max_tokens, self.load, self._limits):
            raise Failed(refused)


async def _result(job: Future[Value]) -> Value:
    return await asyncio.wrap_future(job)


async def _by(
    give_up_s: float, awaited: Coroutine[Any, Any, Value], excuse: str | None = None
) -> Value:
    # Around each wait and not around the generator: a timeout must not fire while its reader,
    # which may be the same task, waits for something else.
    try:
        async with asyncio.timeout(give_up_s - time.monotonic()):
            return await awaited
    except TimeoutError:
        late = _failure(FinishReason.EXPIRED, "the engine did not answer", excuse)
        raise Failed(late) from None


def _failure(reason: FinishReason, detail: str, excuse: str | None = None) -> Refusal:
    status, code, message = FAILURES[reason]
    return Refusal(status, code, f"{message}: {detail}" if detail else message, excuse=excuse)
