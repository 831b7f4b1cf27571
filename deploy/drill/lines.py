"""
Journal lines at which the drill injects faults: recorded from an undisturbed run, then merged.

Pure.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

RESULT = "result"
# Steps that only read: the host is the same before and after them.
_READING = frozenset({"golden"})


@dataclass(frozen=True, slots=True)
class SeenLine:
    """
    A line that a journal got while a command ran.

    Attributes:
        at_s: When it was seen, by the drill's monotonic clock.
        phase: intent, result or event, as in docs/reference/journal.md.
    """

    host: str
    step: str
    phase: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """
    A journal line by its place in a command.

    Attributes:
        occurrence: Counts the lines of this step and phase on this host, from 1.
        merged: Lines that this one stands for, as text.
    """

    host: str
    step: str
    phase: str
    occurrence: int
    merged: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """
        Such as "n1 traffic.set 2 intent".
        """
        number = f" {self.occurrence}" if self.occurrence > 1 else ""
        phase = "" if self.phase == "event" else f" {self.phase}"
        return f"{self.host} {self.step}{number}{phase}"

    def __str__(self) -> str:
        return self.name


class LineMatcher:
    """
    Says when a line has come.
    """

    def __init__(self, line: Line) -> None:
        self._line, self._count = line, 0

    def matches(self, seen: SeenLine) -> bool:
        """
        Return whether *seen*, the next line of any journal, is the line.
        """
        line = self._line
        if (seen.host, seen.step, seen.phase) != (line.host, line.step, line.phase):
            return False
        self._count += 1
        return self._count == line.occurrence


def lines_of(seen: Sequence[SeenLine]) -> list[Line]:
    """
    Return the lines of *seen*, in their order, without merging any.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    lines = []
    for one in seen:
        key = (one.host, one.step, one.phase)
        counts[key] += 1
        lines.append(Line(*key, counts[key]))
    return lines


def distinct_lines(seen: Sequence[SeenLine], *, wave_gap_s: float) -> list[Line]:
    """
    Return the lines that stand for different states of the fleet, each with those merged into it.

    Two rules.  The same line on another host within *wave_gap_s* is of the same wave: its first
    host stands for all.  A result stands for the same state as the next line of its host, and a
    step that only reads for the same as the one before: the next line, and the last one before
    the reading, are kept.

    Args:
        seen: In the order of time.
        wave_gap_s: Shorter than the time between two waves, longer than a wave takes for one step.
    """
    numbered = list(zip(seen, lines_of(seen), strict=True))
    kept: list[tuple[SeenLine, Line]] = []
    for one, line in numbered:
        twin = _twin(kept, one, line, wave_gap_s)
        if twin is not None:
            kept[twin] = (kept[twin][0], _with(kept[twin][1], line))
        else:
            kept.append((one, line))
    return _without_results(kept)


def _twin(
    kept: Sequence[tuple[SeenLine, Line]], one: SeenLine, line: Line, wave_gap_s: float
) -> int | None:
    """
    Return the position of the same line of the same wave on another host.
    """
    for position, (earlier, other) in enumerate(kept):
        is_same = (other.step, other.phase, other.occurrence) == (
            line.step, line.phase, line.occurrence,
        )  # fmt: skip
        if is_same and other.host != line.host and one.at_s - earlier.at_s < wave_gap_s:
            return position
    return None


def _without_results(kept: Sequence[tuple[SeenLine, Line]]) -> list[Line]:
    lines = [line for _, line in kept]
    out: list[Line] = []
    carried: dict[str, list[Line]] = {}  # results, by host, for the next line of that host
    for line in lines:
        if line.step in _READING and any(other.host == line.host for other in out):
            position = max(i for i, other in enumerate(out) if other.host == line.host)
            out[position] = _with(out[position], line)
        elif line.phase == RESULT:
            carried.setdefault(line.host, []).append(line)
        else:
            for result in carried.pop(line.host, []):
                line = _with(line, result)
            out.append(line)
    # A result after which its host writes nothing more stands for itself.
    for results in carried.values():
        last = results[-1]
        for result in results[:-1]:
            last = _with(last, result)
        out.append(last)
    return out


def _with(line: Line, other: Line) -> Line:
    return replace(line, merged=(*line.merged, other.name, *other.merged))


def select_lines(lines: Iterable[Line], words: Sequence[str]) -> list[Line]:
    """
    Return the lines whose names have one of *words*; all without words.
    """
    return [line for line in lines if not words or any(word in line.name for word in words)]
