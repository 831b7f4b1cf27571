"""
The form of golden.jsonl: prompts and conversations, with the answers of a model at temperature 0.

A line asks GENERATE with `prompt`, or CHAT with `messages`.  `expected` is a text, or the calls of
a chat: a list of `{"name", "arguments"}`.  Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

GENERATE, CHAT = "/generate", "/v1/chat/completions"
PROMPT_KEYS = {"prompt": str, "max_tokens": int, "expected": str}
CHAT_KEYS = {"messages": list, "max_tokens": int, "expected": (str, list)}
TOKENS_MAX = 2**31 - 1  # as the runtime has it
# Passed on as they are; the runtime checks them.
CHAT_OPTIONS = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "response_format",
    "structured_outputs",
)
_CALL_KEYS = {"name": str, "arguments": dict}


class GoldenAnswer(NamedTuple):
    """
    An answer, to be compared: a text, or calls without their ids.

    Attributes:
        text: Calls as JSON with sorted keys.
    """

    text: str
    is_calls: bool = False


def complaint(entry: object) -> str | None:
    """
    Return what is wrong with the JSON value of a line; None if it is a golden prompt.
    """
    if not isinstance(entry, dict):
        return "not a JSON object"
    is_chat = "messages" in entry
    wanted: Mapping[str, Any] = CHAT_KEYS if is_chat else PROMPT_KEYS
    known = {*wanted, *(CHAT_OPTIONS if is_chat else ())}
    if missing := [key for key in wanted if key not in entry]:
        return f"{missing[0]} is missing; it should have {', '.join(wanted)}"
    if unknown := sorted(set(entry) - known):
        return f"{unknown[0][:40]!r} is no key of it; it may have {', '.join(sorted(known))}"
    if found := _wrong_type(entry, wanted):
        return found
    if not 1 <= entry["max_tokens"] <= TOKENS_MAX:
        return f"max_tokens should be from 1 to {TOKENS_MAX}"
    if is_chat and not (entry["messages"] and all(isinstance(m, dict) for m in entry["messages"])):
        return "messages should be a list of one or more objects"
    if isinstance(entry["expected"], list):
        return _calls_complaint(entry["expected"])
    return None


def request_of(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """
    Return the route and the body that ask for the answer of *entry*.
    """
    route = CHAT if "messages" in entry else GENERATE
    return route, {key: entry[key] for key in entry if key != "expected"} | {"temperature": 0}


def expected_of(entry: Mapping[str, Any]) -> GoldenAnswer:
    """
    Return the answer that was recorded.
    """
    expected = entry["expected"]
    return GoldenAnswer(expected) if isinstance(expected, str) else _calls(expected)


def answer_of(document: Any) -> GoldenAnswer:
    """
    Return the answer in the runtime's *document*.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError: It has none.
    """
    if "choices" not in document:
        text = document["text"]
        return GoldenAnswer(text if isinstance(text, str) else repr(text))
    message = document["choices"][0]["message"]
    if not message.get("tool_calls"):
        return GoldenAnswer(str(message["content"]))
    functions = [call["function"] for call in message["tool_calls"]]
    return _calls([{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions])


def _calls(calls: list[dict[str, Any]]) -> GoldenAnswer:
    return GoldenAnswer(json.dumps(calls, ensure_ascii=False, sort_keys=True), is_calls=True)


def _wrong_type(entry: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    for key, kind in wanted.items():
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            return f"{key} is {repr(entry[key])[:80]}"
    return None


def _calls_complaint(calls: list[Any]) -> str | None:
    if not calls:
        return "expected should be a text, or a list of one or more calls"
    for call in calls:
        if not isinstance(call, dict) or set(call) != set(_CALL_KEYS):
            return f"a call in expected should have exactly {', '.join(_CALL_KEYS)}"
        if found := _wrong_type(call, _CALL_KEYS):
            return f"expected: {found}"
    return None
