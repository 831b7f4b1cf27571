"""
The answers of OpenAI's routes, whole and as events.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from runtime.server.answers import PLAIN, AnswerForm, AnswerReader
from runtime.server.event_stream import Document
from runtime.server.generation import Generator
from runtime.server.json_pieces import dumps, encode
from runtime.server.requests import AdmittedRequest, TextDelta
from runtime.server.scores import ScoredToken, chat_logprobs, completion_logprobs
from runtime.server.together import together

LONG_ANSWER_CHARS = 20_000  # longer answers become documents in another thread
SCORE_CHARS = 50  # as many characters are as much work as one token's log probabilities


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What one body asks for: one or more answers.

    Attributes:
        prompts: Texts that the answers repeat first, one for each; empty for none.
        prompt_tokens: Of all prompts, each once.
        form: What the text of each answer is split into.
        choices: Answers of one prompt.
    """

    requests: Sequence[AdmittedRequest]
    prompt_tokens: int
    is_stream: bool
    includes_usage: bool
    prompts: Sequence[str] = ()
    form: AnswerForm = PLAIN
    choices: int = 1

    def usage(self, ends: Mapping[int, TextDelta]) -> dict[str, Any]:
        """
        Return the usage of answers, from the last delta of each.
        """
        tokens = sum(end.tokens for end in ends.values())
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }
        # A prompt counts once, so does what its first answer found of it.
        cached = [ends[index].cached_tokens for index in sorted(ends)[:: self.choices]]
        known = [each for each in cached if each is not None]
        if known:
            usage["prompt_tokens_details"] = {"cached_tokens": sum(known)}
        return usage


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
        form: What the text of each answer is split into.
        readers: Of the answers of a stream, by their index.
        scores: Of text that a reader holds back, by that index.
    """

    id: str
    names: Mapping[str, Any]
    form: AnswerForm = PLAIN
    readers: dict[int, AnswerReader] = field(default_factory=dict)
    scores: dict[int, Sequence[ScoredToken]] = field(default_factory=dict)

    def head(self, *, is_event: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if is_event else "chat.completion"
        return {"id": f"chatcmpl-{self.id}", "object": kind, **self.names}

    def choice(self, index: int, answer: TextDelta) -> dict[str, Any]:
        keys, reason = {"content": answer.text}, answer.finish_reason
        if not self.form.is_plain:
            keys, reason = self.form.reader().whole(answer.text, answer.finish_reason)
        return {
            "index": index,
            "message": {"role": "assistant", **keys, "refusal": None},
            "logprobs": chat_logprobs(answer.scores),
            "finish_reason": reason,
        }

    def choices(self, index: int, delta: TextDelta, *, is_first: bool) -> list[dict[str, Any]]:
        def choice(
            delta: dict[str, Any],
            finish_reason: str | None = None,
            scores: Sequence[ScoredToken] | None = None,
        ) -> dict[str, Any]:
            return {
                "index": index,
                "delta": delta,
                "logprobs": chat_logprobs(scores),
                "finish_reason": finish_reason,
            }

        # OpenAI's first content is null where calls may follow.
        first = {"role": "assistant", "content": "" if self.form.use is None else None}
        events = [choice(first)] if is_first else []
        scores = None
        if delta.scores is not None:
            scores = [*self.scores.pop(index, ()), *delta.scores]
        deltas, reason = self._split(index, delta)
        for part in deltas:
            events.append(choice(part, scores=scores))
            scores = None
        if reason is not None:
            # Tokens without a text of their own may be left.
            events.append(choice({}, reason, scores or None))
        elif scores:
            self.scores[index] = scores  # of a text that is still held back
        return events

    def _split(self, index: int, delta: TextDelta) -> tuple[list[dict[str, Any]], str | None]:
        if self.form.is_plain:
            return [{"content": delta.text}] if delta.text else [], delta.finish_reason
        reader = self.readers.setdefault(index, self.form.reader())
        deltas = reader.feed(delta.text)
        if delta.finish_reason is None:
            return deltas, None
        last, reason = reader.close(delta.finish_reason)
        return [*deltas, *last], reason


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
        prompt = self.prompts[index] if self.prompts else ""
        scores = delta.scores
        if self.prompts and scores is not None:
            shifted = [replace(each, offset=len(prompt) + each.offset) for each in scores]
            scores = [*(delta.prompt_scores or ()), *shifted]
        choice = {
            "index": index,
            "text": (prompt if is_first else "") + delta.text,
            "logprobs": completion_logprobs(scores),
            "finish_reason": delta.finish_reason,
        }
        return [choice]


async def whole(generator: Generator, asked: Asked, format: Format) -> bytes:
    """
    Return the document of a whole answer, as JSON.
    """
    answers = await generator.all(asked.requests)

    def choices() -> list[dict[str, Any]]:
        return [format.choice(index, answer) for index, answer in enumerate(answers)]

    is_long = sum(map(_weight, answers)) > LONG_ANSWER_CHARS
    document = format.head(is_event=False) | {
        "choices": await asyncio.to_thread(choices) if is_long else choices(),
        "usage": asked.usage(dict(enumerate(answers))),
    }
    return await encode(document) if is_long else dumps(document)


def _weight(delta: TextDelta) -> int:
    """
    Return how much work the document of *delta* is, in characters of a text.
    """
    return len(delta.text) + SCORE_CHARS * (
        len(delta.scores or ()) + len(delta.prompt_scores or ())
    )


async def events(
    generator: Generator, asked: Asked, format: Format
) -> AsyncGenerator[Document | bytes, None]:
    """
    Yield the documents of a stream, long ones as JSON; if asked for, the last one has the usage and
    no choice.
    """
    head = format.head(is_event=True)
    if asked.includes_usage:
        head["usage"] = None
    newest: dict[int, TextDelta] = {}
    streams = [generator.deltas(request) for request in asked.requests]
    async with aclosing(together(streams)) as deltas:
        async for index, delta in deltas:
            is_first, is_long = index not in newest, _weight(delta) > LONG_ANSWER_CHARS
            if is_long:
                found = await asyncio.to_thread(format.choices, index, delta, is_first=is_first)
            else:
                found = format.choices(index, delta, is_first=is_first)
            for choice in found:
                document = head | {"choices": [choice]}
                yield await encode(document) if is_long else document
            newest[index] = delta
    if asked.includes_usage:
        yield head | {"choices": [], "usage": asked.usage(newest)}
