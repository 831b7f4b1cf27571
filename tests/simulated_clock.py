"""
A clock that moves only when somebody sleeps, and runs due timers while it moves.
"""

import heapq
import itertools
import threading
from datetime import UTC, datetime, timedelta


class SimulatedClock:
    """
    The clock of a release in tests.

    Args:
        on_pass: Told of each span of time that passes, in seconds: hosts, traffic.
    """

    def __init__(self, on_pass=lambda seconds: None):
        self.now_s = 1000.0
        self._on_pass = on_pass
        self._timers = []
        self._count = itertools.count()
        self._lock = threading.RLock()

    def monotonic_s(self):
        return self.now_s

    def utc(self):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def start_timer(self, body, after_s):
        timer = _Timer(body)
        with self._lock:
            self._push(timer, after_s)
        return timer

    def cancel_all(self):
        """
        End all timers, as the end of their process does.
        """
        with self._lock:
            self._timers.clear()

    def sleep(self, seconds):
        with self._lock:
            until_s = self.now_s + seconds
            while self._timers and self._timers[0][0] <= until_s:
                due_s, _, timer = heapq.heappop(self._timers)
                self._pass(due_s - self.now_s)
                if not timer.is_cancelled:
                    again_s = timer.body()
                    if again_s is not None:
                        self._push(timer, again_s)
            self._pass(until_s - self.now_s)

    def _push(self, timer, after_s):
        heapq.heappush(self._timers, (self.now_s + after_s, next(self._count), timer))

    def _pass(self, seconds):
        self.now_s += max(0.0, seconds)
        if seconds > 0:
            self._on_pass(seconds)


class _Timer:
    def __init__(self, body):
        self.body = body
        self.is_cancelled = False

    def cancel(self):
        self.is_cancelled = True
