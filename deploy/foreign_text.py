r"""
Text that others wrote: hosts, their programs, files, servers, the command line.

How to use it:

- Where the words of a host become part of an error, an event or a report: `says("n1", words)`
  gives `n1 says: "no space left"`.  Such text never stands at the start of a line, is quoted, and
  is a reason (`why`), never a remedy, a class or a code.
- Where the sentence names the speaker already: `quoted(words)`.
- Any other single value, such as a path, a key of a file or the message of a library:
  `visible(value)`.
- What is printed passes `visible` once more in deploy/cli/terminal.py, which only keeps our own
  ends of lines.  That is the last guard, not a reason to leave the quoting out: there nobody knows
  any more whose words they were.
"""

from collections.abc import Iterable

from runtime.contract.visible_text import LIMIT, indented, visible

__all__ = ["LIMIT", "indented", "listed", "quoted", "says", "visible"]

_NAMES = 12  # of a list that stay readable on one line


def says(speaker: str, words: str, *, limit: int = LIMIT) -> str:
    r"""
    Return *words* quoted as those of *speaker*, on one line: `n1 says: "no space left"`.

    A quotation mark or a backslash within the words has a backslash in front, so that the words
    cannot end the quotation.

    Args:
        speaker: Who said it: the name of a host, or what it is, such as `pip on n1`.
        limit: Most characters of the quotation; see `visible`.
    """
    words = words.strip()
    if not words:
        return f"{visible(speaker)} says nothing"
    return f"{visible(speaker)} says: {quoted(words, limit=limit)}"


def quoted(words: str, *, limit: int = LIMIT) -> str:
    """
    Return *words* between quotation marks, as in `says`, where the text around names the speaker.
    """
    return f'"{visible(words, limit=limit, escape_quotes=True)}"'


def listed(names: Iterable[str]) -> str:
    """
    Return *names* on one line; of many the first ones, and how many more there are.
    """
    first = list(names)
    more = len(first) - _NAMES
    text = ", ".join(first[:_NAMES])
    return f"{text} and {more} more" if more > 0 else text
