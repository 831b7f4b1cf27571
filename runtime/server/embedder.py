"""
From texts to vectors: admission, tokenizing, the engine, deadlines.
"""

import asyncio
import base64
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.contract import CLIENT_DEADLINE
from runtime.engines.base.client import Client
from runtime.engines.base.protocol import FinishReason, Share
from runtime.server.admission import AdmissionLimits, CurrentLoad, Refusal, refuse, time_allowed_s
from runtime.server.caller import current_caller
from runtime.server.errors import Failed
from runtime.server.failures import failure
from runtime.server.prompts import Prompt, PromptReader

MOST_AT_ONCE = 32  # texts of one request that the engine has
FIELD = "input"
_NO_LOAD = CurrentLoad(0, 0.0)


@dataclass(frozen=True, slots=True)
class TextToEmbed:
    """
    Attributes:
        late_s: When the whole answer is late, on the monotonic clock.
        late_excuse: Excuse of a late answer.
        share: Whose text it is.
        priority: See `Submit`.
    """

    tokens: Sequence[int]
    late_s: float
    late_excuse: str | None
    share: Share
    priority: int


class Embedder:
    """
    Makes embeddings with one model.

    Args:
        shorter_dimensions: What its vectors may be cut to.
    """

    def __init__(
        self,
        engine: Client,
        prompts: PromptReader,
        limits: AdmissionLimits,
        dimensions: int,
        shorter_dimensions: Sequence[int] = (),
    ) -> None:
        self._engine, self._prompts, self._limits = engine, prompts, limits
        self.dimensions, self.shorter_dimensions = dimensions, tuple(shorter_dimensions)

    def check_dimensions(self, wanted: int | None) -> None:
        """
        Raises:
            Failed: 400: the model's vectors can't have *wanted* dimensions.
        """
        known = (*self.shorter_dimensions, self.dimensions)
        if wanted is not None and wanted not in known:
            sizes = ", ".join(map(str, known))
            message = f"dimensions: this model's embeddings have {sizes}"
            raise Failed(Refusal(400, "invalid_request", message, param="dimensions"))

    async def read(
        self, prompts: Sequence[Prompt], timeout_s: float | None = None, priority: int = 0
    ) -> list[TextToEmbed]:
        """
        Return *prompts* in tokens, as texts of the present caller.

        Raises:
            Failed: One is empty, too long, or has a token that the model lacks; or it is late.
        """
        allowed_s = time_allowed_s(timeout_s, self._limits)
        excuse = CLIENT_DEADLINE if allowed_s < self._limits.request_timeout_s else None
        late_s = time.monotonic() + allowed_s
        texts, share = [], current_caller().share
        try:
            async with asyncio.timeout(allowed_s):
                for prompt in prompts:
                    tokens = await self._prompts.tokens(
                        prompt,
                        FIELD,
                        adds_special=True,
                        enough=self._limits.context_tokens + 1,
                        check=lambda least: self._refuse_long(max(least, 1)),
                    )
                    self._refuse_long(len(tokens))
                    texts.append(TextToEmbed(tokens, late_s, excuse, share, priority))
                    await asyncio.sleep(0)  # the loop goes on between two texts
        except TimeoutError:
            raise _failed(FinishReason.EXPIRED, excuse) from None
        return texts

    async def embed(self, texts: Sequence[TextToEmbed], dimensions: int | None) -> list[bytes]:
        """
        Return the fp32 values of each vector, little-endian.

        Args:
            dimensions: To cut the vectors to; they have the length 1 again then.  None: whole.

        Raises:
            Failed: Late, or one failed in the engine; the others are cancelled.
        """
        turns = asyncio.Semaphore(MOST_AT_ONCE)

        async def one(text: TextToEmbed) -> bytes:
            async with turns:
                return _cut(await self._vector(text), dimensions)

        tasks = [asyncio.create_task(one(text)) for text in texts]
        try:
            with self._engine.hold():
                return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _vector(self, text: TextToEmbed) -> bytes:
        left_s = text.late_s - time.monotonic()
        if left_s <= 0:
            raise _failed(FinishReason.EXPIRED, text.late_excuse)
        id, stream = self._engine.embed(text.tokens, left_s, text.share, text.priority)
        try:
            async with asyncio.timeout(left_s):
                reason = await stream.end()
        except TimeoutError:
            reason = FinishReason.EXPIRED
        finally:
            self._engine.cancel(id)
        if not reason.is_good:
            raise _failed(reason, text.late_excuse, stream.detail)
        return base64.b64decode(stream.vector)

    def _refuse_long(self, tokens: int) -> None:
        if refused := refuse(tokens, 0, _NO_LOAD, self._limits, field=FIELD):
            raise Failed(refused)


def _cut(vector: bytes, dimensions: int | None) -> bytes:
    if dimensions is None or 4 * dimensions == len(vector):
        return vector
    values = array("f", vector[: 4 * dimensions])
    length = sum(value * value for value in values) ** 0.5 or 1.0
    return array("f", [value / length for value in values]).tobytes()


def _failed(reason: FinishReason, excuse: str | None, detail: str = "") -> Failed:
    return Failed(failure(reason, detail, excuse if reason is FinishReason.EXPIRED else None))
