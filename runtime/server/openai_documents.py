"""
The answers of OpenAI's routes, whole and as events.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.server.event_stream import Document
from runtime.server.generation import AdmittedRequest, Generator, TextDelta, together


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What one body asks for: one or more answers.

    Attributes:
        prompts: Texts that the answers repeat first, one for each; empty for none.
        prompt_tokens: Of all prompts, each once.
    """

    requests: Sequence[AdmittedRequest]
    prompt_tokens: int
    is_stream: bool
    includes_usage: bool
    prompts: Sequence[str] = ()

    def usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }


class Format(Protocol):
    """
    One route's form of an answer.
    """

    def head(self, *, is_event: bool) -> dict[str, Any]:
        """
        Return the keys of every answer and event, but its choices.
        """

    def choice(self, index: int, answer: TextDelta) -> dict[str, Any]:
        """
        Return a choice of a whole answer.
        """

    def choices(self, index: int, delta: TextDelta, *, is_first: bool) -> list[dict[str, Any]]:
        """
        Return the choices of the events that *delta* is, one for each event.
        """


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """
    `chat.completion` and `chat.completion.chunk`.

    Attributes:
        names: The keys `created`, `model` and `version`.
    """

    id: str
    names: Mapping[str, Any]

    def head(self, *, is_event: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if is_event else "chat.completion"
        return {"id": f"chatcmpl-{self.id}", "object": kind, **self.names}

    def choice(self, index: int, answer: TextDelta) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }

    def choices(self, index: int, delta: TextDelta, *, is_first: bool) -> list[dict[str, Any]]:
        def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
            return {
                "index": index,
                "delta": delta,
                "logprobs": None,
                "finish_reason": finish_reason,
            }

        events = [choice({"role": "assistant", "content": ""})] if is_first else []
        if delta.text:
            events.append(choice({"content": delta.text}))
        if delta.finish_reason is not None:
            events.append(choice({}, delta.finish_reason))
        return events


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    """
    `text_completion`.

    Attributes:
        names: The keys `created`, `model` and `version`.
        prompts: Texts that the answers repeat first.
    """

    id: str
    names: Mapping[str, Any]
    prompts: Sequence[str]

    def head(self, *, is_event: bool) -> dict[str, Any]:
        return {"id": f"cmpl-{self.id}", "object": "text_completion", **self.names}

    def choice(self, index: int, answer: TextDelta) -> dict[str, Any]:
        (choice,) = self.choices(index, answer, is_first=True)
        return choice

    def choices(self, index: int, delta: TextDelta, *, is_first: bool) -> list[dict[str, Any]]:
        prompt = self.prompts[index] if is_first and self.prompts else ""
        choice = {
            "index": index,
            "text": prompt + delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        return [choice]


async def whole(generator: Generator, asked: Asked, format: Format) -> Document:
    """
    Return the document of a whole answer.
    """
    answers = await generator.all(asked.requests)
    return format.head(is_event=False) | {
        "choices": [format.choice(index, answer) for index, answer in enumerate(answers)],
        "usage": asked.usage(sum(answer.tokens for answer in answers)),
    }


async def events(
    generator: Generator, asked: Asked, format: Format
) -> AsyncGenerator[Document, None]:
    """
    Yield the documents of a stream; if asked for, the last one has the usage and no choice.
    """
    head = format.head(is_event=True)
    if asked.includes_usage:
        head["usage"] = None
    tokens: dict[int, int] = {}
    streams = [generator.deltas(request) for request in asked.requests]
    async with aclosing(together(streams)) as deltas:
        async for index, delta in deltas:
            for choice in format.choices(index, delta, is_first=index not in tokens):
                yield head | {"choices": [choice]}
            tokens[index] = delta.tokens
    if asked.includes_usage:
        yield head | {"choices": [], "usage": asked.usage(sum(tokens.values()))}
