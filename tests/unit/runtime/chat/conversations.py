"""
Conversations in the form of OpenAI's API, and the same for transformers.
"""

import json
from dataclasses import dataclass, field
from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city <in °C> & \"wind\"",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "e.g. Zürich, 北京"},
                "unit": {"type": "string", "enum": ["c", "f"]},
            },
            "required": ["city"],
        },
    },
}  # fmt: skip
TAP = {
    "type": "function",
    "function": {
        "name": "tap",
        "description": "Tap the screen",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
        },
    },
}


@dataclass(frozen=True)
class Conversation:
    """
    Attributes:
        kwargs: Further variables of the template.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(id, name, **arguments):
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def result(id, content):
    return {"role": "tool", "tool_call_id": id, "content": content}


def text(content):
    return {"type": "text", "text": content}


UNICODE = "Grüße 👩‍🚀, 你好, שלום, e\u0301, \u2028, \u00a0, <b>&amp;'\"</b>, tab\there"

CONVERSATIONS = {
    "user alone": Conversation([user("Which planet is the largest?")]),
    "system and user": Conversation([system("  You are terse. "), user("Name a colour.")]),
    "several turns": Conversation(
        [
            system("You are terse."),
            user("Name a colour."),
            assistant("Blue."),
            user("Another.\n\nAnd why?"),
            assistant(" Green,\nas grass. "),
            user("Thanks"),
        ]
    ),
    "no generation prompt": Conversation(
        [user("Name a colour."), assistant("Blue.")], add_generation_prompt=False
    ),
    "ends with the assistant": Conversation([user("Count to three."), assistant("One, two")]),
    "tools offered": Conversation(
        [system("Help."), user("How warm is it in Zürich?")], tools=[WEATHER, TAP]
    ),
    "tools without system": Conversation([user("Tap the button.")], tools=[TAP]),
    "no tools in the list": Conversation([user("Tap the button.")], tools=[]),
    "tool called": Conversation(
        [
            user("How warm is it in Zürich?"),
            assistant(None, tool_calls=[call("c1", "get_weather", city="Zürich", unit="c")]),
            result("c1", '{"t": 21.5, "sky": "☀"}'),
        ],
        tools=[WEATHER],
    ),
    "tool called with words": Conversation(
        [
            system("Help."),
            user("How warm is it?"),
            assistant("Let me look.", tool_calls=[call("c1", "get_weather", city="東京")]),
            result("c1", "21"),
            assistant("It is 21 °C."),
            user("And tomorrow?"),
        ],
        tools=[WEATHER],
    ),
    "tools called in parallel": Conversation(
        [
            user("Zürich and Bern?"),
            assistant(
                "",
                tool_calls=[
                    call("c1", "get_weather", city="Zürich"),
                    call("c2", "get_weather", city="Bern"),
                ],
            ),
            result("c1", "21"),
            result("c2", [text("19")]),
        ],
        tools=[WEATHER],
    ),
    "call without arguments": Conversation(
        [user("Tap."), assistant(None, tool_calls=[call("c1", "tap")]), result("c1", "done")],
        tools=[TAP],
    ),
    "text parts": Conversation(
        [
            system([text("You are terse.")]),
            user([text("Name a colour."), text("Not blue.")]),
            assistant([text("Red.")]),
            user([text("Why?")]),
        ]
    ),
    "unicode": Conversation([system(UNICODE), user(UNICODE), assistant(UNICODE), user(UNICODE)]),
    "empty content": Conversation([system(""), user(""), assistant(""), user("")]),
    "template syntax in content": Conversation(
        [user("{{ 7 * 7 }} {% raise %} {# none #}"), assistant("<|im_end|>"), user("</think>")]
    ),
    "thinking disabled": Conversation([user("Think not.")], kwargs={"enable_thinking": False}),
    "thinking enabled": Conversation([user("Think.")], kwargs={"enable_thinking": True}),
    "reasoning in history": Conversation(
        [
            user("Largest planet?"),
            assistant("Jupiter.", reasoning_content="By mass\nand by size."),
            user("Smallest?"),
            assistant("<think>\nBy mass.\n</think>\n\nMercury."),
            user("Sure?"),
        ]
    ),
    "reasoning around a call": Conversation(
        [
            user("Tap the button."),
            assistant("", reasoning="It is at 3, 4.", tool_calls=[call("c1", "tap", x=3, y=4)]),
            result("c1", "done"),
        ],
        tools=[TAP],
    ),
    "system in the middle": Conversation([user("Hello"), system("Be kind."), user("Again")]),
    "other role": Conversation([user("Hello"), {"role": "observation", "content": "21"}]),
    "names and unknown keys": Conversation(
        [{"role": "user", "content": "Hello", "name": "ann", "metadata": "m", "refusal": None}]
    ),
}


def for_transformers(messages, form):
    """
    Return *messages* as the documentation of transformers wants them for a template.

    Arguments of a call are an object.

    Args:
        form: Of the content: "string"; "parts"; "either": parts in a user's message alone.
    """
    return [_converted(message, form) for message in messages]


def _converted(message, form):
    converted = json.loads(json.dumps(message))
    content = converted.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content]
        if form == "string":
            converted["content"] = "\n".join(texts)
        elif form == "either" and message["role"] != "user":
            converted["content"] = "".join(texts)
    elif isinstance(content, str) and form == "parts":
        converted["content"] = [text(content)]
    for each in converted.get("tool_calls", []):
        each["function"]["arguments"] = json.loads(each["function"]["arguments"])
    return converted
