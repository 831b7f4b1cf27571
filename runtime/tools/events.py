"""
What parsers make of a model's text.  The `raw` of all events joined is that text.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """
    Text for the reader; its *text* is empty if *raw* is white space beside a call.
    """

    text: str
    raw: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """
    Text between <think> and </think>.
    """

    text: str
    raw: str


@dataclass(frozen=True, slots=True)
class Markup:
    """
    Text that belongs to the form of a call alone, such as its end marker.
    """

    raw: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """
    Attributes:
        index: Of the call in its answer, from 0.
        name: Of a tool that the request offers.
    """

    index: int
    name: str
    raw: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """
    The next part of a call's arguments, as JSON text.
    """

    index: int
    text: str
    raw: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """
    Attributes:
        is_valid: The arguments are a whole JSON object.  If not, they broke off.
    """

    index: int
    is_valid: bool
    raw: str = ""


Event = Content | Reasoning | Markup | CallStarted | ArgumentsDelta | CallEnded


def raw_of(events: Iterable[Event]) -> str:
    """
    Return the model's text of *events*.
    """
    return "".join(event.raw for event in events)
