"""
Reads the Prometheus text format that a slot answers, in linear time and within limits.

A slot may be hostile.  Each character is looked at a fixed number of times, whatever the text is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_CHARS = 4 << 20
MAX_LINES = 50_000
MAX_LINE_CHARS = 8_192
MAX_LABELS = 64

# Each is one run of one class of characters, or one alternative of single characters: nothing in
# them can be matched in two ways, so that no match ever backtracks over what it consumed.
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SPACE = re.compile(r"[ \t]*")
_VALUE = re.compile(r'[^"\\]*')
_WORD = re.compile(r"[^ \t]+")
_ESCAPES = {"n": "\n", "\\": "\\", '"': '"'}


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


class MetricsError(ValueError):
    """
    The text is not in the format, or exceeds a limit.
    """


def parse_metrics(text: str) -> list[Sample]:
    """
    Return the samples of *text*.

    Raises:
        MetricsError: A line is no sample, a value is no number, or a limit is exceeded.

    Source: "Exposition formats", Prometheus documentation; compared with prometheus-client 0.22.
    """
    return scan(text)[0]


def scan(text: str) -> tuple[list[Sample], int]:
    """
    Return the samples of *text*, and how many characters were scanned for them in all.

    Raises:
        MetricsError: As `parse_metrics`.
    """
    if len(text) > MAX_CHARS:
        raise MetricsError(f"the metrics have {len(text)} characters, {MAX_CHARS} are allowed")
    # Only "\n" ends a line: a label may contain every other line separator of Unicode.
    lines = text.split("\n", MAX_LINES)
    if len(lines) > MAX_LINES:
        raise MetricsError(f"the metrics have more than {MAX_LINES} lines")
    samples = []
    scanned = 2 * len(text)  # the split, and the copy of each line
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_CHARS:
            raise MetricsError(
                f"line {number} of the metrics has {len(line)} characters, "
                f"{MAX_LINE_CHARS} are allowed"
            )
        reader = _Line(line, number)
        sample = reader.sample()
        scanned += reader.scanned
        if sample is not None:
            samples.append(sample)
    return samples, scanned


class _Line:
    """
    A position in one line; it only moves forward.
    """

    def __init__(self, text: str, number: int) -> None:
        self._text, self._number = text, number
        self._at = 0
        self.scanned = 0

    def sample(self) -> Sample | None:
        """
        Return the sample of the line; None for an empty line and for a comment.
        """
        self._run(_SPACE)
        if self._next() in {"", "#"}:
            return None
        name = self._word(_NAME, "a metric's name")
        self._run(_SPACE)
        labels = self._labels() if self._skip("{") else {}
        self._run(_SPACE)
        word = self._word(_WORD, "a value")
        try:
            value = float(word)
        except ValueError:
            raise self._error(f"{word[:40]!r} is no number") from None
        self._run(_SPACE)
        self._run(_WORD)  # a timestamp
        self._run(_SPACE)
        if self._next():
            raise self._error("it has text after its end")
        return Sample(name, labels, value)

    def _labels(self) -> dict[str, str]:
        labels: dict[str, str] = {}
        self._run(_SPACE)
        while not self._skip("}"):
            if len(labels) == MAX_LABELS:
                raise self._error(f"it has more than {MAX_LABELS} labels")
            name = self._word(_NAME, "a label's name")
            self._run(_SPACE)
            self._expect("=")
            self._run(_SPACE)
            self._expect('"')
            if name in labels:
                raise self._error(f"it has the label {name[:40]} twice")
            labels[name] = self._quoted()
            self._run(_SPACE)
            if not self._skip(",") and self._next() != "}":
                raise self._error("a label is not followed by a comma or a brace")
            self._run(_SPACE)
        return labels

    def _quoted(self) -> str:
        parts = []
        while True:
            parts.append(self._run(_VALUE))
            if self._skip('"'):
                return "".join(parts)
            self._expect("\\")
            escaped = self._next()
            if escaped in _ESCAPES:
                parts.append(_ESCAPES[escaped])
                self._at += 1
            else:
                parts.append("\\")  # it stands for itself, as prometheus-client reads it

    def _run(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        run = match[0] if match else ""
        self._at += len(run)
        self.scanned += len(run) + 1
        return run

    def _word(self, pattern: re.Pattern[str], what: str) -> str:
        word = self._run(pattern)
        if not word:
            raise self._error(f"{what} is missing")
        return word

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, character: str) -> bool:
        self.scanned += 1
        if self._next() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._skip(character):
            raise self._error(f"{character} is missing")

    def _error(self, why: str) -> MetricsError:
        return MetricsError(f"line {self._number} of the metrics cannot be read: {why}")
