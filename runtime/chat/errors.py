"""
Why a conversation was not rendered.  The client's request caused each of them.
"""


class ChatTemplateError(Exception):
    """
    The template refused the messages; the text is its own, or that of its first error.

    Attributes:
        field: The field of the request at fault.
    """

    def __init__(self, words: str, field: str = "messages") -> None:
        super().__init__(words)
        self.field = field


class RenderLimitExceeded(ChatTemplateError):
    """
    Rendering took more time or memory than a conversation may, or made more text.
    """
