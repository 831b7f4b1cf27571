"""
Splits the text of a chat's answer into reasoning, content and calls, whole or as it comes.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.chat import ChatTemplate
from runtime.contract.tool_parsers import JSON, ToolParserName
from runtime.tools import (
    ArgumentsDelta,
    CallEnded,
    CallParser,
    CallStarted,
    Content,
    Event,
    Reasoning,
    ReasoningSplitter,
    ToolSyntax,
    ToolUse,
    find_syntax,
    make_parser,
    put_together,
)

Delta = dict[str, Any]  # of a message


def syntax_of(name: ToolParserName, template: ChatTemplate | None) -> ToolSyntax | None:
    """
    Return how a model with this *template* writes calls; None if it knows no tools.
    """
    if template is None:
        return None
    return find_syntax(name, template.for_tools, reads_tools=template.reads_tools)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """
    What the text of an answer is split into.

    Attributes:
        use: None: it has no calls.
        parser: Name of the parser of the calls.
        separates_reasoning: Else reasoning stays in the content.
        is_in_reasoning: The prompt ended with the mark that reasoning begins with.
        is_bound: The engine lets the answer be calls alone, as `schema_of(use)` describes them: it
            is read with the parser JSON, and has no reasoning.
    """

    use: ToolUse | None = None
    parser: str = JSON
    separates_reasoning: bool = False
    is_in_reasoning: bool = False
    is_bound: bool = False

    @property
    def is_plain(self) -> bool:
        """
        Whether the text as it is is the content.
        """
        return self.use is None and not self.separates_reasoning

    def reader(self) -> "AnswerReader":
        """
        Return a reader of one answer.
        """
        return AnswerReader(self)


PLAIN = AnswerForm()


@dataclass(slots=True)
class AnswerReader:
    """
    Reads one answer.  Reasoning is looked for first: calls within it are none.
    """

    form: AnswerForm
    _splitter: ReasoningSplitter | None = field(init=False)
    _parser: CallParser | None = field(init=False)
    _has_calls: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        form = self.form
        self._splitter = None
        if not form.is_bound:
            self._splitter = ReasoningSplitter(is_inside=form.is_in_reasoning)
        parser, use = JSON if form.is_bound else form.parser, form.use
        self._parser = None if use is None else make_parser(parser, use.callable_tools)

    def whole(self, text: str, finish_reason: str | None) -> tuple[Delta, str | None]:
        """
        Return the keys of the message, and the finish reason.
        """
        events = [*self._events(text), *self._last_events(finish_reason)]
        answer = put_together(events)
        calls = answer.calls if self._is_parallel else answer.calls[:1]
        message: Delta = {"content": answer.content or (None if calls else "")}
        if self.form.separates_reasoning:
            message["reasoning_content"] = answer.reasoning or None
        if calls:
            message["tool_calls"] = [_call(call.name, call.arguments) for call in calls]
        return message, self._finish_reason(finish_reason)

    def feed(self, text: str) -> list[Delta]:
        """
        Return the deltas that follow from the next part of the text.
        """
        return list(self._deltas(self._events(text)))

    def close(self, finish_reason: str) -> tuple[list[Delta], str]:
        """
        Return the last deltas and the finish reason.
        """
        deltas = list(self._deltas(self._last_events(finish_reason)))
        return deltas, self._finish_reason(finish_reason) or finish_reason

    @property
    def _is_parallel(self) -> bool:
        return self.form.use is None or self.form.use.is_parallel

    def _events(self, text: str) -> list[Event]:
        if self._splitter is None:
            return self._parsed([Content(text, text)])
        return self._parsed(self._splitter.feed(text))

    def _last_events(self, finish_reason: str | None) -> list[Event]:
        events = [] if self._splitter is None else self._parsed(self._splitter.close())
        if self._parser is not None:
            events += self._counted(self._parser.close(is_cut=finish_reason != "stop"))
        return events

    def _parsed(self, events: Sequence[Event]) -> list[Event]:
        parsed: list[Event] = []
        for event in events:
            if isinstance(event, Content):
                parsed += self._counted(self._parser.feed(event.text)) if self._parser else [event]
            elif self.form.separates_reasoning:
                parsed.append(event)
            else:
                parsed.append(Content(event.raw, event.raw))
        return parsed

    def _counted(self, events: list[Event]) -> list[Event]:
        self._has_calls |= any(isinstance(each, CallEnded) and each.is_valid for each in events)
        return events

    def _finish_reason(self, reason: str | None) -> str | None:
        # As OpenAI and vLLM say it: a call that the request named is no choice of the model.
        is_named = self.form.use is not None and self.form.use.choice == "named"
        return "tool_calls" if self._has_calls and reason == "stop" and not is_named else reason

    def _deltas(self, events: Iterable[Event]) -> Iterator[Delta]:
        for event in events:
            match event:
                case Content(text=text) if text:
                    yield {"content": text}
                case Reasoning(text=text):
                    yield {"reasoning_content": text}
                case CallStarted() | ArgumentsDelta() if event.index and not self._is_parallel:
                    pass
                case CallStarted(index=index, name=name):
                    yield {"tool_calls": [{"index": index} | _call(name, "")]}
                case ArgumentsDelta(index=index, text=text) if text:
                    call = {"index": index, "function": {"arguments": text}}
                    yield {"tool_calls": [call]}


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
