"""
Why a conversation was not rendered.  The client's request caused each of them.
"""


class ChatTemplateError(Exception):
    """
    The template refused the messages; the text is its own, or that of its first error.
    """


class RenderLimitExceeded(ChatTemplateError):
    """
    Rendering took more time or memory than a conversation may, or made more text.
    """
