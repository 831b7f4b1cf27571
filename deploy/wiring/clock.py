"""
The clock of a real release.
"""

import threading
import time
from datetime import UTC, datetime

from deploy.release.clock import TimerBody

_TIMER_END_S = 10.0  # the longest wait for a renewal in progress


class SystemClock:
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
