r"""
Makes text from outside safe to print, to log and to write into reports: `visible`, `indented`.

A host, a client, a file or a program may send control characters that move the cursor, set the
title of a terminal or begin a line of their own; bidi controls and zero-width characters that make
a text read as another one; and lines that a CI system takes as commands.  `visible` writes each of
them as an escape, such as `\x1b` or `\u202e`, and bounds the length.

Sources: the Unicode property Default_Ignorable_Code_Point (DerivedCoreProperties.txt); workflow
commands of GitHub (`::name::` at the start of a line, `##[name]` anywhere), logging commands of
Azure Pipelines (`##vso[`) and service messages of TeamCity (`##teamcity[`).  GitLab's sections need
a carriage return and ESC.
"""

import re
import unicodedata
from collections.abc import Iterator

LIMIT = 1000  # characters of one text, unless the caller says otherwise
_TEXT_LIMIT = 1 << 20  # characters of a text with lines
_MARK = len("(+ characters)") + 12  # room for the mark of a text that was cut
_MARKS_IN_A_ROW = 4  # combining marks on one character; more would cover the lines above
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Characters that `str.isprintable` accepts and that show nothing: grapheme joiner, fillers,
# variation selectors, Braille blank, musical null notehead.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0000-\U000e0fff]"
)
# What makes a line a command of a CI system.  The last character of the match is escaped.
_COMMAND = re.compile(r"(?:^|\n) *:(?=:(?![0-9]))|##(?=[A-Za-z]{0,32}\[)")


def visible(
    text: str, *, limit: int = LIMIT, keep_lines: bool = False, escape_quotes: bool = False
) -> str:
    r"""
    Return *text* with everything that does not show written as an escape, on one line.

    Escaped are C0 and C1 controls, DEL, line and paragraph ends, bidi controls, zero-width and
    other invisible characters, spaces other than U+0020, surrogates, private and unassigned code
    points, more than four combining marks in a row, and what begins a command of a CI system.
    Applied to its own result it changes nothing, with the same *keep_lines* and limit, unless
    *escape_quotes* is set.

    Args:
        limit: Most characters of the result; at least 64.  A longer text ends in
            `(+N characters)`, where N counts the characters of *text* that were left out.
        keep_lines: Keep `\n` as the end of a line.
        escape_quotes: Write `"` and `\` with a backslash in front, for text between quotation
            marks.

    Raises:
        ValueError: *limit* is below 64.
    """
    if limit < 64:
        raise ValueError(f"limit {limit}: at least 64")
    if not escape_quotes and _is_plain(text[: limit + 64]):
        kept = limit - _MARK
        return text if len(text) <= limit else f"{text[:kept]}(+{len(text) - kept} characters)"
    pieces: list[str] = []
    size = fitting = 0
    for piece in _pieces(text, limit, keep_lines, escape_quotes):
        size += len(piece)
        if size > limit:
            return "".join(pieces[:fitting]) + f"(+{len(text) - fitting} characters)"
        pieces.append(piece)
        if size <= limit - _MARK:
            fitting = len(pieces)
    return "".join(pieces)


def indented(text: str, *, indent: int = 2, line_limit: int = 1 << 16) -> str:
    r"""
    Return *text* visible, with its lines; each but the first is indented by *indent* spaces.

    So nothing within a text can look like the beginning of another entry.

    Args:
        line_limit: Most characters of a line.  The whole has at most 2**20.
    """
    first, *others = text[:_TEXT_LIMIT].split("\n")
    margin = " " * indent
    lines = [line if line.startswith(margin) else margin + line.lstrip(" ") for line in others]
    shown = "\n".join(visible(line, limit=line_limit) for line in [first, *lines])
    return visible(shown, limit=_TEXT_LIMIT, keep_lines=True)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and not _COMMAND.search(text)


def _pieces(text: str, limit: int, keep_lines: bool, escape_quotes: bool) -> Iterator[str]:
    """
    Yield what stands for each character of *text*.
    """
    head = text[: limit + 64]
    commands = {match.end() - 1 for match in _COMMAND.finditer(head)}
    marks = _MARKS_IN_A_ROW  # a mark needs a character in front
    for index, char in enumerate(text):
        if char > "\x7f" and unicodedata.category(char) in ("Mn", "Mc", "Me"):
            marks += 1
        else:
            marks = 0 if char.isprintable() and char != " " else _MARKS_IN_A_ROW
        if index in commands or marks > _MARKS_IN_A_ROW:
            yield escape(char)
        elif char == "\n" and keep_lines:
            yield char
        elif escape_quotes and char in '"\\':
            yield f"\\{char}"
        else:
            yield char if char.isprintable() and not _BLANK.match(char) else escape(char)


def escape(char: str) -> str:
    r"""
    Return the escape of one character: `\n`, `\r`, `\t`, `\x1b`, `\u202e` or `\U000e0041`.
    """
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
