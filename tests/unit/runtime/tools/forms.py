"""
Tools, and texts that models write about them, shared by the tests of the parsers.
"""

from runtime.tools import Tool, make_parser
from runtime.tools.events import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    Content,
    Markup,
    Reasoning,
    raw_of,
)

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": ["string", "null"]},
            "more": {},
        },
    },
)
TAP = Tool("tap")
TOOLS = (WEATHER, TAP)


def parse(name, text, *, size=None, is_cut=False, tools=TOOLS):
    """
    Return the events of *text*, fed in parts of *size* characters, or in the sizes of a list.
    """
    parser = make_parser(name, tools)
    events = []
    for part in split(text, size):
        events += parser.feed(part)
    return events + parser.close(is_cut=is_cut)


def split(text, size=None):
    sizes = iter(size if isinstance(size, list) else ())
    default = size if isinstance(size, int) else max(len(text), 1)
    at = 0
    while at < len(text):
        step = next(sizes, default)
        yield text[at : at + step]
        at += step


def joined(events):
    """
    Return *events* as pairs, neighbours of a kind joined: what a client sees of them.
    """
    seen = []

    def add(kind, text):
        if seen and seen[-1][0] == kind:
            seen[-1] = (kind, seen[-1][1] + text)
        elif text:
            seen.append((kind, text))

    for event in events:
        match event:
            case Content(text=text):
                add("content", text)
            case Reasoning(text=text):
                add("reasoning", text)
            case CallStarted(index=index, name=name):
                seen.append((f"call {index}", name))
            case ArgumentsDelta(index=index, text=text):
                add(f"arguments {index}", text)
            case CallEnded(index=index, is_valid=is_valid):
                seen.append((f"end {index}", is_valid))
            case Markup():
                pass
    return seen


def call(index, name, arguments):
    """
    Return the pairs of one whole call.
    """
    return [(f"call {index}", name), (f"arguments {index}", arguments), (f"end {index}", True)]


def said(text):
    return [("content", text)]


__all__ = ["TAP", "TOOLS", "WEATHER", "call", "joined", "parse", "raw_of", "said", "split"]
