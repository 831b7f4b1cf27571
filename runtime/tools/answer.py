"""
Events of a whole answer put together.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.tools.events import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    Content,
    Event,
    Reasoning,
)


@dataclass(frozen=True, slots=True)
class Call:
    """
    Attributes:
        arguments: JSON text of an object.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """
    Attributes:
        content: Empty if the answer is calls alone.
    """

    content: str
    reasoning: str
    calls: tuple[Call, ...]


def put_together(events: Iterable[Event]) -> Answer:
    """
    Return the answer that *events* are of.

    A call that broke off is content, as the model wrote it.
    """
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[Call] = []
    space: list[str] = []  # beside a call that may break off
    call = _OpenCall()
    for event in events:
        call.raw.append(event.raw)
        match event:
            case Content(text="", raw=raw):
                space.append(raw)
            case Content(text=text):
                content.append(text)
                space.clear()
            case Reasoning(text=text):
                reasoning.append(text)
            case CallStarted(name=name, raw=raw):
                call = _OpenCall(name, raw)
            case ArgumentsDelta(text=text):
                call.arguments.append(text)
            case CallEnded(is_valid=True):
                calls.append(Call(call.name, "".join(call.arguments)))
                space.clear()
            case CallEnded():
                content += [*space, *call.raw]
                space.clear()
    return Answer("".join(content), "".join(reasoning), tuple(calls))


class _OpenCall:
    def __init__(self, name: str = "", raw: str = "") -> None:
        self.name = name
        self.raw = [raw]
        self.arguments: list[str] = []
