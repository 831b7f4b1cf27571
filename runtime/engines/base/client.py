"""
The API process's end of an engine, whichever it is: token ids in, token ids out, on asyncio.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from runtime.engines.base.in_flight import InFlight, TokenStream
from runtime.engines.base.protocol import (
    Embed,
    EngineReport,
    FinishReason,
    Load,
    Loaded,
    Share,
    Submit,
)
from runtime.engines.base.sampling import SamplingParams


class Client(ABC):
    """
    Submits and cancels requests, and passes on what the engine reports.

    Attributes:
        last: The newest report; None before the first.
        died: Done once the engine process has ended, whatever the reason.
        exit_reason: How it ended, once it has.
        has_priorities: Whether it heeds the priority of a request.
        scores_prompts: Whether it computes log probabilities of a prompt's tokens.
        limits_keys: Whether it heeds the `concurrency` of a key.

    Args:
        on_report: Called with each report, beats included.
    """

    scores_prompts = True
    limits_keys = True

    def __init__(self, on_report: Callable[[EngineReport], None]) -> None:
        self.last: EngineReport | None = None
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exit_reason = ""
        self.has_priorities = True
        self._on_report = on_report
        self._requests = InFlight()

    @property
    def in_flight(self) -> int:
        """
        The answers in flight; texts to embed are not counted: a request has up to thousands.
        """
        return len(self._requests) - len(self._requests.texts)

    @abstractmethod
    async def connect(self) -> None:
        """
        Open what `load` and `submit` need.
        """

    @abstractmethod
    async def load(self, load: Load) -> Loaded:
        """
        Have the engine read a model: the first one, or another in its place once drained.

        Raises:
            ConfigError: The configuration is at fault.
            ModelError: The directory is at fault; the model before it still serves.
            EngineError: Anything else.
        """

    @abstractmethod
    async def swap(self, model_dir: str) -> Loaded:
        """
        Have the engine exchange its weights for those of *model_dir*, of the same shapes.

        Running requests finish on the old weights, waiting ones are computed with the new.

        Raises:
            ModelError: The directory is at fault; the old weights still serve.
            EngineError: Anything else.
        """

    def submit(
        self,
        tokens: Sequence[int],
        params: SamplingParams,
        timeout_s: float,
        share: Share = Share(),  # noqa: B008 - frozen
        prefix_of: int | None = None,
        priority: int = 0,
    ) -> tuple[int, TokenStream]:
        """
        Send a request; return its id, for `cancel`, and the stream of its tokens.

        Args:
            prefix_of, priority: See `Submit`.
        """
        id, stream = self._requests.new()
        if self.died.done():
            self._requests.finish(id, FinishReason.DIED, self.exit_reason)
        else:
            request = Submit(id, tokens, params, timeout_s, share, prefix_of, priority)
            self._start(request, stream)
        return id, stream

    @abstractmethod
    def _start(self, request: Submit, stream: TokenStream) -> None:
        """
        Send *request* to the engine, whose process has not ended.
        """

    def embed(
        self,
        tokens: Sequence[int],
        timeout_s: float,
        share: Share = Share(),  # noqa: B008 - frozen
        priority: int = 0,
    ) -> tuple[int, TokenStream]:
        """
        Send a text to embed; return its id and a stream that ends with the vector.
        """
        id, stream = self._requests.new(is_text=True)
        if self.died.done():
            self._requests.finish(id, FinishReason.DIED, self.exit_reason)
        else:
            self._start_embedding(Embed(id, tokens, timeout_s, share, priority))
        return id, stream

    def hold(self) -> AbstractContextManager[None]:
        """
        Keep `drain` waiting while the parts of one call follow each other.
        """
        return self._requests.hold()

    def _start_embedding(self, request: Embed) -> None:
        """
        Send *request* to the engine; of an engine that said that it makes embeddings.
        """
        raise NotImplementedError

    @abstractmethod
    def cancel(self, id: int) -> None:
        """
        Free what a request holds, within a step; no effect on a finished one.
        """

    async def drain(self, timeout_s: float) -> int:
        """
        Wait until no request is in flight; return how many are after *timeout_s*.
        """
        return await self._requests.drain(timeout_s)

    def abandon(self) -> int:
        """
        Fail all in-flight requests as ABANDONED; return the count.
        """
        return len(self._finish_all(FinishReason.ABANDONED))

    def _finish_all(self, reason: FinishReason, detail: str = "") -> list[int]:
        return self._requests.finish_all(reason, detail)

    @abstractmethod
    async def close(self) -> int:
        """
        End the engine process; return its exit status.
        """

    def _mark_dead(self, exit_reason: str) -> None:
        """
        Fail what is in flight with *exit_reason*.
        """
        self.exit_reason = exit_reason
        if not self.died.done():
            self.died.set_result(None)
        self._finish_all(FinishReason.DIED, exit_reason)


def exit_reason(status: int) -> str:
    """
    Return how a process ended, from its exit *status* as `subprocess` gives it.
    """
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
