"""
The clock of a release: time, waiting, and timers that run beside the release.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

TimerBody = Callable[[], float | None]  # returns the seconds to its next run; None ends it


class Timer(Protocol):
    """
    A body that runs again and again, beside the release.
    """

    def cancel(self) -> None:
        """
        End it; returns when a run in progress has ended, or after a few seconds.
        """


class Clock(Protocol):
    """
    The only clock of a release.
    """

    def monotonic_s(self) -> float: ...

    def utc(self) -> datetime: ...

    def sleep(self, seconds: float) -> None: ...

    def start_timer(self, body: TimerBody, after_s: float) -> Timer:
        """
        Run *body* after *after_s*, and then as often as it asks for.
        """
