"""
Text of other programs: its lines, and output cut down for an error message.
"""

from __future__ import annotations

from collections.abc import Iterable


def lines_of(text: str) -> list[str]:
    r"""
    Return the lines of *text*; only "\n" ends one.

    `str.splitlines` also ends a line at a form feed, a vertical tab, NEL or U+2028, which JSON,
    HAProxy and procfs leave in a value as they are.
    """
    return text.split("\n")


def one_line(text: str, last: int = 4) -> str:
    """
    Return the *last* non-blank lines of *text*, joined into one line.
    """
    lines: Iterable[str] = (line.strip() for line in text.splitlines())
    return " / ".join([line for line in lines if line][-last:])
