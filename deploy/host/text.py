"""
Output of programs, cut down for an error message.
"""

from __future__ import annotations

from collections.abc import Iterable


def one_line(text: str, last: int = 4) -> str:
    """
    Return the *last* non-blank lines of *text*, joined into one line.
    """
    lines: Iterable[str] = (line.strip() for line in text.splitlines())
    return " / ".join([line for line in lines if line][-last:])
