"""
Calls and their results in the form that the chat template of GLM-4 knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def with_observations(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """
    Return *messages* with each call as a message of its own, whose `metadata` is the tool's name,
    and results as the role `observation`.

    Source: the template and the tool example of zai-org/GLM-4-9B-0414, which renders messages with
    `tool_calls` and of the role `tool` as nothing.
    """
    return tuple(each for message in messages for each in _converted(message))


def _converted(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if message["role"] == "tool":
        yield {"role": "observation", "content": message.get("content")}
        return
    calls = message.get("tool_calls")
    if not calls:
        yield message
        return
    if message.get("content"):
        yield {key: value for key, value in message.items() if key != "tool_calls"}
    for call in calls:
        function = call["function"]
        yield {
            "role": "assistant",
            "metadata": function["name"],
            "content": function["arguments"],
        }
