"""
Brings the messages of OpenAI's API into the form that templates are written for.  Pure.

Source: `_normalize_chat_messages` and `_alias_reasoning_fields` in transformers 5.24.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.chat.content import ContentForm, convert
from runtime.chat.errors import ChatTemplateError

# Names that clients give a message's reasoning, first the one that most templates read.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def prepare_messages(
    messages: Sequence[Mapping[str, Any]], form: ContentForm
) -> list[dict[str, Any]]:
    """
    Return *messages* for a template that reads content in *form*.

    Raises:
        ChatTemplateError: There is none, or one has content that the template can't show.
    """
    if not messages:
        raise ChatTemplateError("messages: at least one is required")
    return [_prepare(message, form, f"messages[{i}]") for i, message in enumerate(messages)]


def _prepare(message: Mapping[str, Any], form: ContentForm, where: str) -> dict[str, Any]:
    # Templates handle a missing key and print null as "None".
    prepared = {key: value for key, value in message.items() if value is not None}
    if "content" in prepared:
        prepared["content"] = convert(
            prepared["content"], form, role=prepared.get("role"), where=f"{where}.content"
        )
    if isinstance(calls := prepared.get("tool_calls"), list):
        prepared["tool_calls"] = [_with_object_arguments(call) for call in calls]
    reasoning = next((prepared[key] for key in _REASONING if key in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    return prepared


def _with_object_arguments(call: Any) -> Any:
    """
    Return *call* with its arguments as an object, where they are the text of one.

    OpenAI's API has text there, and templates write objects as JSON.  What a model wrote may be no
    JSON at all; then it stays a text.
    """
    function = call.get("function") if isinstance(call, dict) else None
    text = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(text, str):
        return call
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
