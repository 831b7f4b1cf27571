"""
A model's chat template, as the API uses it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.chat.errors import ChatTemplateError
from runtime.chat.files import ChatFiles, read_chat_files
from runtime.chat.limits import RenderLimits
from runtime.chat.process import RenderProcess, TemplateInvalid
from runtime.contract.chat_files import DEFAULT, TOOL_USE
from runtime.contract.errors import ModelError

# What a request has fields of its own for.
_RESERVED = ("messages", "tools", "add_generation_prompt")


class ChatTemplate:
    """
    Renders conversations, one at a time.  Safe to use from several threads.

    Attributes:
        special_tokens: Text of each special token by name, such as `eos_token`.
        for_tools: Text of the template that a conversation with tools gets.
        reads_tools: Whether that one reads the variable `tools`.

    Raises:
        ModelError: A template can't be compiled; names its file and line.
    """

    def __init__(self, files: ChatFiles, limits: RenderLimits | None = None) -> None:
        self.special_tokens = MappingProxyType(dict(files.special_tokens))
        self._names = frozenset(files.templates)
        self._process = RenderProcess(files.templates, limits or RenderLimits())
        try:
            self._process.compile()
        except TemplateInvalid as error:
            self._process.close()
            raise ModelError(
                f"{files.sources[error.name]}: not a chat template",
                why=f"{error.name}: {error}",
                fix="use the file that was published with the model",
            ) from None
        name = self._name(has_tools=True)
        self.for_tools = files.templates[name]
        self.reads_tools = name in self._process.reads_tools

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """
        Return the text of the conversation, as transformers renders it.

        The text has its own BOS: encode it without adding one.  Blocks, for some ten microseconds
        a message and a few seconds at most: call it from a thread.

        Args:
            messages: JSON values as in OpenAI's API; content is a string or a list of text parts.
            tools: JSON values as in OpenAI's API.  Templates tell an empty list from None.
            add_generation_prompt: End with the header of an answer.
            kwargs: Further variables of the template, such as `enable_thinking`.

        Raises:
            RenderLimitExceeded: Rendering takes more time or memory than a conversation may.
            ChatTemplateError: The template refuses the messages; says why in its own words.
        """
        for name in _RESERVED:
            if name in kwargs:
                field = f"chat_template_kwargs.{name}"
                raise ChatTemplateError(f"{field}: has a field of its own", field)
        variables = {
            "documents": None,
            **self.special_tokens,
            **kwargs,
            "add_generation_prompt": add_generation_prompt,
        }
        name = self._name(has_tools=tools is not None)
        return self._process.render(name, messages, tools, variables)

    def close(self) -> None:
        """
        End the process that renders.  It also ends with this process.
        """
        self._process.close()

    def _name(self, *, has_tools: bool) -> str:
        return TOOL_USE if has_tools and TOOL_USE in self._names else DEFAULT


def load_chat_template(model_directory: Path) -> ChatTemplate | None:
    """
    Return the chat template of the model in *model_directory*; None if it has none.

    Starts a process, which takes some 0.2 s.

    Raises:
        ModelError: It is broken; names file, key and remedy.
    """
    files = read_chat_files(model_directory)
    return None if files is None else ChatTemplate(files)
