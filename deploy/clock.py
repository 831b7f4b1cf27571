"""
The clock of what takes long: time, waiting, and timers that run beside it.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

TimerBody = Callable[[], float | None]  # returns the seconds to its next run; None ends it

_TIMER_END_S = 10.0  # the longest wait for a renewal in progress


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


class SystemClock:
    """
    The clock of this machine.
    """

    def monotonic_s(self) -> float:
        return time.monotonic()

    def utc(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def start_timer(self, body: TimerBody, after_s: float) -> "ThreadTimer":
        return ThreadTimer(body, after_s)


class ThreadTimer:
    """
    Runs *body* in a thread, again and again, until it returns None or is cancelled.
    """

    def __init__(self, body: TimerBody, after_s: float) -> None:
        self._body = body
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(after_s,), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        self._cancelled.set()
        self._thread.join(_TIMER_END_S)

    def _run(self, after_s: float | None) -> None:
        while after_s is not None and not self._cancelled.wait(after_s):
            after_s = self._body()
