"""
Parses and formats durations, sizes and percentages with units: "30s", "512MiB", "5%".  Pure.

This is the only parser for them.
"""

import re
from typing import Annotated

from pydantic import BeforeValidator

_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S = 365 * _SECONDS["d"]  # clocks and timers overflow somewhere above it
_LARGEST_BYTES = 2**50
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_duration_s(text: object) -> float:
    """
    Return the seconds of "250ms", "30s", "10m", "2h", "1d".

    Raises:
        ValueError: *text* is not a number with one of these units, or is more than 365 days.
    """
    seconds = _parse(text, _SECONDS, "a duration with its unit, such as 30s or 10m")
    if seconds > _LONGEST_S:
        raise ValueError(f"should be at most 365d, got {text!r}")
    return seconds


def parse_size_bytes(text: object) -> int:
    """
    Return the bytes of "512MiB", "1.5GiB".

    Raises:
        ValueError: *text* is not a number with a binary unit, or is more than 1024 TiB.
    """
    size = _parse(text, _BYTES, "a size with its unit, such as 512MiB or 2GiB")
    if size > _LARGEST_BYTES:
        raise ValueError(f"should be at most 1024TiB, got {text!r}")
    return int(size)


def parse_ratio(text: object) -> float:
    """
    Return the ratio of "5%": 0.05.

    Raises:
        ValueError: *text* is not a percentage from 0% to 100%.
    """
    ratio = _parse(text, {"%": 0.01}, "a percentage, such as 5%")
    if not 0 <= ratio <= 1:
        raise ValueError(f"should be from 0% to 100%, got {text!r}")
    return ratio


def format_duration(seconds: float) -> str:
    """
    Return *seconds* in the largest fitting unit: "850ms", "4.2s", "3m10s".
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s"


def format_size(count: int) -> str:
    """
    Return *count* bytes in the largest unit with a value of at least 1: "1.5GiB", "512B".
    """
    for unit in reversed(_BYTES):
        if count >= _BYTES[unit] and unit != "B":
            return f"{count / _BYTES[unit]:.1f}{unit}"
    return f"{count}B"


def _parse(text: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    if isinstance(text, str):
        names = "|".join(units)
        if match := re.fullmatch(f"{_NUMBER} ?({names})", text):
            return float(match[1]) * units[match[2]]
    raise ValueError(f"should be {expected}, got {text!r}")


Seconds = Annotated[float, BeforeValidator(parse_duration_s)]
Bytes = Annotated[int, BeforeValidator(parse_size_bytes)]
Ratio = Annotated[float, BeforeValidator(parse_ratio)]
