"""
A guard around a text stream: nothing gets through it unseen, whoever writes.
"""

from collections.abc import Iterable
from typing import Any, TextIO

from runtime.contract.visible_text import visible

TEXT_LIMIT = 1 << 20  # characters of one write


class VisibleStream:
    """
    A text stream that keeps ends of lines and makes everything else visible.

    Args:
        inner: The stream that gets the result; all else is asked of it.
    """

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        """
        Write *text*; return its length, as a stream does.
        """
        self.inner.write(visible(text, limit=TEXT_LIMIT, keep_lines=True))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def trusted_stream(stream: TextIO) -> TextIO:
    """
    Return the stream behind *stream*, for text that was made visible before, or that holds our own
    escape sequences.
    """
    return stream.inner if isinstance(stream, VisibleStream) else stream
