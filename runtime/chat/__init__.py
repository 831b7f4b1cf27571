"""
Chat templates: from the messages of a conversation to the text that a model continues.

Rendering equals that of `apply_chat_template` in transformers.  Templates run in a process of
their own, with bounds on time and memory.  Knows no HTTP, no tokens and no engine.
"""

from runtime.chat.errors import ChatTemplateError, RenderLimitExceeded
from runtime.chat.template import ChatTemplate, load_chat_template

__all__ = ["ChatTemplate", "ChatTemplateError", "RenderLimitExceeded", "load_chat_template"]
