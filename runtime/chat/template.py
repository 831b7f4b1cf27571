"""
A model's chat template, as the API uses it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from runtime.chat.environment import make_environment
from runtime.chat.errors import ChatTemplateError
from runtime.contract.errors import ModelError


class ChatTemplate:
    """
    Renders conversations.  Safe to use from several threads.

    Attributes:
        special_tokens: Text of each special token by name, such as `eos_token`.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        environment = make_environment()
        self.special_tokens = dict(special_tokens)
        self._templates = {name: environment.from_string(text) for name, text in templates.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] = {},
    ) -> str:
        """
        Return the text of the conversation.  It carries its own BOS: encode it without one.

        Blocks for as long as it takes, a few seconds at most: call it from a thread.

        Args:
            messages: JSON values, as OpenAI's API has them; content is a string or a list of parts.
            tools: JSON values, as OpenAI's API has them.
            add_generation_prompt: End with the header of an answer.
            kwargs: Further variables of the template, such as `enable_thinking`.

        Raises:
            ChatTemplateError: The template refuses the messages; says why in its own words.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        try:
            return self._templates[name].render(
                messages=[dict(each) for each in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **kwargs},
            )
        except Exception as error:
            raise ChatTemplateError(str(error)) from None

    def close(self) -> None:
        """
        End the process that renders.  It also ends with this process.
        """


def load_chat_template(model_directory: Path) -> ChatTemplate | None:
    """
    Return the chat template of the model in *model_directory*; None if it has none.

    Raises:
        ModelError: It is broken; names file, key and remedy.
    """
    config: dict[str, Any] = {}
    path = model_directory / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
    source: Any = config.get("chat_template")
    if (model_directory / "chat_template.jinja").exists():
        source = (model_directory / "chat_template.jinja").read_text(encoding="utf-8")
    if source is None:
        return None
    templates = (
        {"default": source}
        if isinstance(source, str)
        else {each["name"]: each["template"] for each in source}
    )
    tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    try:
        return ChatTemplate(templates, tokens)
    except jinja2.TemplateError as error:
        raise ModelError(
            f"{model_directory}: chat template: not a template",
            why=str(error),
            fix="use the file that was published with the model",
        ) from error
