r"""
Texts that a host, a client or a file may send to hurt whoever prints them, and what no output may
hold after them.
"""

import re

LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
BIDI = [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f",
        "\u061c"]  # fmt: skip
INVISIBLE = ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e", "\u034f",
             "\u115f", "\u3164", "\uffa0", "\u2800", "\ufe0f", "\U000e0101", "\U000e0001",
             "\U000e0041", "\U000e007f", "\u00a0", "\u3000", "\ue000", "\U0010ffff"]  # fmt: skip
CONTROLS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))]
SURROGATES = ["\ud800", "\udfff", "\udc80"]
HIDDEN = sorted({*CONTROLS, *BIDI, *INVISIBLE, *SURROGATES, *(c for c in LINE_ENDS if len(c) == 1)})

TERMINAL = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H",
    "\x1b[1A\x1b[2Kn2: ok",
    "\x9b31mred",
    "\x1bP$q\x1b\\",
    "progress\rn2: ok",
    "a\b\b\b\bb",
    "\x1b[200~rm -rf /\x1b[201~",
]
MARKUP = [
    "[red]x[/red]",
    "[link=https://evil.example]x[/link]",
    "[/x]",
    "[",
    "\\[red]",
    "[@click=quit]",
]
CI = [
    "::error file=a,line=1::gone",
    "  ::set-output name=x::y",
    "::add-mask::e",
    "::stop-commands::x",
    "::set-env name=PATH::/tmp",
    "x ##[error]gone",
    "##[add-path]/tmp",
    "##vso[task.setvariable variable=x]y",
    "##teamcity[testFailed name='x']",
    "section_start:1560896352:x[collapsed=true]\r\x1b[0Kx",
    "section_end:1560896352:x\r\x1b[0K",
    "%0A::error::x",
    "ok%0D%0A::error::x",
]
XML = ["</failure><script>alert(1)</script>", "]]>", "&lt;", "<!--", '" x="', "\x00", "\ufffe"]
LINES = [f"quiet{end}::error::forged{end}n2: ok" for end in LINE_ENDS]
CORPUS = [*HIDDEN, *TERMINAL, *MARKUP, *CI, *XML, *LINES, "x" * 100_000, "\x1b" * 20_000,
          "a" + "\u0301" * 500, "", " ", "\\", '"', "\\n"]  # fmt: skip

# Our own colours, as rich and terminal.py write them.
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,12}m")
_CI_COMMAND = re.compile(r"(?m)^\s*::(?![0-9])|##[A-Za-z]*\[|section_(start|end):[0-9]+:[^\r]*\r")


def complaints(raw: bytes, *, colour: bool = False) -> list[str]:
    """
    Return what bytes written to a terminal, a log or a report must not hold.

    Args:
        colour: Our own colours are in it.
    """
    found = []
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return [f"not UTF-8: {error}"]
    if colour:
        text = _COLOUR.sub("", text)
    hidden = {char for char in text if char in _HIDDEN and char != "\n"}
    found += [f"raw {char!r}" for char in sorted(hidden)]
    found += [f"a CI command: {match[0]!r}" for match in _CI_COMMAND.finditer(text)]
    return found


_HIDDEN = frozenset(HIDDEN)
