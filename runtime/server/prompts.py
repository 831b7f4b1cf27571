"""
From what a client sends as a prompt to token ids: chat template, tokenizer, check of the ids.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from runtime.chat import ChatTemplate, ChatTemplateError
from runtime.contract.visible_text import visible
from runtime.server.admission import Refusal
from runtime.server.echo import EchoedPrompt, echo_tokens
from runtime.server.errors import Failed
from runtime.server.text import Codec, Decoder, is_unicode

LONG_PROMPT_CHARS = 20_000  # longer prompts are tokenized in another thread
# A MiB of text takes a thread about a second and 50 to 350 MiB, by its words: few at a time.
LONG_PROMPT_THREADS = 2
# A longer text is not tokenized, though it may be of characters that the tokenizer drops.
CHARS_PER_TOKEN = 16
FEWEST_CHARS = 1 << 17  # that are tokenized in any context
LONG_TOKENS = 4096  # more are decoded in another thread
RENDER_THREADS = 2
TEMPLATE_WORDS = 500  # characters of what a template says when it refuses messages
Value = TypeVar("Value")

Prompt = str | tuple[int, ...]  # a text, or its token ids


@dataclass(frozen=True, slots=True)
class Conversation:
    """
    Messages that the model's chat template makes a prompt of.

    Attributes:
        adds_generation_prompt: End with the header of an answer.
        kwargs: Further variables of the template.
        tools: None for none: a template tells that from an empty list.
    """

    messages: tuple[Mapping[str, Any], ...]
    adds_generation_prompt: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] | None = None

    def find_surrogate(self) -> str:
        """
        Return the field with one half of a surrogate pair; call it if the prompt has one.
        """
        others = {"tools": self.tools, "chat_template_kwargs": self.kwargs}
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in others.items()}
        return next((name for name, text in texts.items() if not is_unicode(text)), "messages")


class PromptReader:
    """
    Reads prompts for one model.

    Args:
        template: None for a model without a chat template.
        vocabulary: Tokens that the model has, from 0 on; None if that is not known.

    Attributes:
        given_up: Jobs of its threads that go on though nobody waits for them.
    """

    def __init__(self, codec: Codec, template: ChatTemplate | None, vocabulary: int | None) -> None:
        self._codec, self._template, self._vocabulary = codec, template, vocabulary
        self.given_up = 0
        self._long_prompts = ThreadPoolExecutor(LONG_PROMPT_THREADS, "tokenize")
        self._rendering = ThreadPoolExecutor(RENDER_THREADS, "render")

    async def tokens(
        self,
        prompt: Prompt | Conversation,
        field: str,
        *,
        adds_special: bool,
        enough: int,
        check: Callable[[int], None],
    ) -> Sequence[int]:
        """
        Return the token ids of *prompt*.

        Args:
            field: The field of the body that has it.
            adds_special: Put the tokenizer's own tokens around a text.
            enough: A number of tokens that *check* refuses.
            check: Called with the least number of tokens of a long text, before it is tokenized.

        Raises:
            Failed: It cannot be read, the model has no such token, or *check* raised.
        """
        conversation = None
        if isinstance(prompt, Conversation):
            conversation, prompt = prompt, await self._render(prompt)
            adds_special = False  # the template writes them
        if not isinstance(prompt, str):
            self._check(prompt, field)
            return prompt
        if not is_unicode(prompt):
            field = field if conversation is None else conversation.find_surrogate()
            message = f"{field} has one half of a surrogate pair"
            raise Failed(Refusal(400, "invalid_request", message, param=field))
        encode = partial(self._codec.encode, adds_special=adds_special)
        if len(prompt) < LONG_PROMPT_CHARS:
            tokens = encode(prompt)
        else:
            check(self._codec.least_tokens(prompt, enough))
            _check_length(prompt, field, enough - 1)
            tokens = await self._threaded(self._long_prompts, partial(encode, prompt))
        self._check(tokens, field)
        return tokens

    async def text_of(self, tokens: Sequence[int]) -> str:
        """
        Return the text of token ids, the `tokens` of a body.

        Raises:
            Failed: The model has no such token.
        """
        self._check(tokens, "tokens")
        decode = partial(self._codec.decode, tokens)
        if len(tokens) <= LONG_TOKENS:
            return decode()
        return await self._threaded(self._long_prompts, decode)

    async def echo(
        self, prompt: Prompt, decoder: Decoder, *, adds_special: bool, has_offsets: bool
    ) -> EchoedPrompt:
        """
        Return the text of a *prompt* that `tokens` has read: what the client has sent, or the text
        of its token ids.

        Args:
            decoder: Decodes token ids.
            adds_special: As for `tokens`.
            has_offsets: Whether its offsets are needed.
        """

        def text() -> EchoedPrompt:
            if isinstance(prompt, str):
                return EchoedPrompt(prompt, self._codec.offsets(prompt, adds_special=adds_special))
            if has_offsets:
                return echo_tokens(decoder, prompt)
            return EchoedPrompt(decoder.decode(prompt))

        if isinstance(prompt, str) and not has_offsets:
            return EchoedPrompt(prompt)
        if len(prompt) <= LONG_TOKENS and not has_offsets:
            return text()
        return await self._threaded(self._long_prompts, text)

    async def _render(self, conversation: Conversation) -> str:
        if self._template is None:
            message = "the model has no chat template; send a prompt to /v1/completions"
            raise Failed(Refusal(400, "no_chat_template", message, param="messages"))
        render = partial(
            self._template.render,
            conversation.messages,
            tools=conversation.tools,
            add_generation_prompt=conversation.adds_generation_prompt,
            kwargs=conversation.kwargs,
        )
        try:
            return await self._threaded(self._rendering, render)
        except ChatTemplateError as error:
            words = visible(str(error), limit=TEMPLATE_WORDS)
            refused = Refusal(400, "chat_template_refused", words, param=error.field)
            raise Failed(refused) from None

    async def _threaded(self, pool: ThreadPoolExecutor, work: Callable[[], Value]) -> Value:
        job = pool.submit(work)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            self.given_up += 1  # until its thread, which goes on, is done with it
            loop = asyncio.get_running_loop()
            job.add_done_callback(lambda _: self._ended(loop))
            raise

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        def count() -> None:
            self.given_up -= 1

        with suppress(RuntimeError):  # the loop ended before the thread
            loop.call_soon_threadsafe(count)

    def _check(self, tokens: Sequence[int], field: str) -> None:
        """
        Refuse a token without a row in the embedding: it would fail the step of all requests.
        """
        most = self._vocabulary
        if tokens and (min(tokens) < 0 or (most is not None and max(tokens) >= most)):
            message = f"{field} has a token id that the model does not have"
            raise Failed(Refusal(400, "unknown_token", message, param=field))


def _check_length(text: str, field: str, context_tokens: int) -> None:
    """
    Raises:
        Failed: *text* has more characters than are tokenized for such a context.
    """
    most = max(FEWEST_CHARS, CHARS_PER_TOKEN * context_tokens)
    if len(text) > most:
        message = (
            f"This model's maximum context length is {context_tokens} tokens. However, the "
            f"{field} has {len(text)} characters, and at most {most} are read for it."
        )
        raise Failed(Refusal(400, "context_length_exceeded", message, param=field))
