"""
The order of checks that wait for one thread: fair between keys.  Pure.

The key whose checks took the least time is next; one that was away starts level with the others,
as in `runtime.engines.paged.fairness`.
"""

from collections import deque
from typing import Generic, TypeVar

Check = TypeVar("Check")


class CheckQueue(Generic[Check]):
    """
    Checks of each key, in the order of their arrival.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Check]] = {}
        self._took_s: dict[str, float] = {}
        self._last_s = 0.0  # of the key that was next before

    def count(self, key: str) -> int:
        return len(self._waiting.get(key, ()))

    def push(self, key: str, check: Check) -> None:
        if key not in self._waiting:
            least = min((self._took_s[each] for each in self._waiting), default=self._last_s)
            self._took_s[key] = max(self._took_s.get(key, 0.0), least)
            self._waiting[key] = deque()
        self._waiting[key].append(check)

    def pop(self) -> tuple[str, Check] | None:
        """
        Remove and return the next check with its key; None if none waits.
        """
        if not self._waiting:
            return None
        key = min(self._waiting, key=lambda each: self._took_s[each])
        self._last_s = self._took_s[key]
        check = self._waiting[key].popleft()
        self._forget_empty(key)
        return key, check

    def remove(self, key: str, check: Check) -> None:
        """
        Remove a check; no effect on one that does not wait.
        """
        if check in self._waiting.get(key, ()):
            self._waiting[key].remove(check)
            self._forget_empty(key)

    def charge(self, key: str, took_s: float) -> None:
        """
        Note the time that a check took; while none waits there is nothing to compare.
        """
        if self._waiting:
            self._took_s[key] = self._took_s.get(key, 0.0) + took_s
        else:
            self._took_s.clear()
            self._last_s = 0.0

    def _forget_empty(self, key: str) -> None:
        if not self._waiting[key]:
            del self._waiting[key]
