"""
Limits of requests and tokens a minute, of each API key.  Pure: the clock is an argument.

A bucket holds a minute's worth and fills continuously, so a key may spend a whole minute's worth
at once, after a minute of silence.  Each limit is of one process: of one slot of one host.
"""

import math
from dataclasses import dataclass

from runtime.server.key_file import MAX_KEYS, ServedKey

REQUESTS, TOKENS = KINDS = "requests", "tokens"
MOST_KEYS = 2 * MAX_KEYS
PARTS = ("limit", "remaining", "reset")  # of the headers of each


class Bucket:
    """
    What one key may still spend of one kind.

    Args:
        per_minute: Its size, and what flows in each minute.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = float(per_minute), now_s

    def left(self, now_s: float) -> int:
        """
        Return what may be spent now; 0 while it is in debt.
        """
        return max(0, math.floor(self._refilled(now_s) + 1e-9))

    def take(self, count: int, now_s: float) -> bool:
        """
        Spend *count* if there is that much; what is larger than the bucket needs a full one.
        """
        level = self._refilled(now_s)
        if level + 1e-9 < min(count, self.per_minute):
            return False
        self._level = level - count
        return True

    def settle(self, count: int, now_s: float) -> None:
        """
        Give *count* back, or take it, where it is negative, also into debt.
        """
        self._level = min(self._refilled(now_s) + count, float(self.per_minute))

    def wait_s(self, count: int, now_s: float) -> float:
        """
        Return the seconds until `take` succeeds.
        """
        missing = min(count, self.per_minute) - self._refilled(now_s)
        return max(0.0, missing * 60 / self.per_minute)

    def full_s(self, now_s: float) -> float:
        """
        Return the seconds until it is full.
        """
        return self.wait_s(self.per_minute, now_s)

    def resize(self, per_minute: int, now_s: float) -> None:
        """
        Change the limit; what was spent stays spent.
        """
        spent = self.per_minute - self._refilled(now_s)
        self.per_minute, self._level = per_minute, per_minute - spent

    def is_full(self, now_s: float) -> bool:
        return self.full_s(now_s) == 0

    def _refilled(self, now_s: float) -> float:
        grown = self._level + max(0.0, now_s - self._at_s) * self.per_minute / 60
        self._level, self._at_s = min(grown, float(self.per_minute)), now_s
        return self._level


@dataclass(slots=True)
class KeyLimits:
    """
    The buckets of one key; None: without a limit.
    """

    requests: Bucket | None = None
    tokens: Bucket | None = None

    def are_untouched(self, now_s: float) -> bool:
        """
        Return whether new ones would be the same.
        """
        return all(one is None or one.is_full(now_s) for one in (self.requests, self.tokens))

    def headers(self, now_s: float) -> list[tuple[bytes, bytes]]:
        """
        Return OpenAI's `x-ratelimit-*` headers.
        """
        found = []
        for kind, bucket in ((REQUESTS, self.requests), (TOKENS, self.tokens)):
            if bucket is not None:
                for name, value in (
                    ("limit", str(bucket.per_minute)),
                    ("remaining", str(bucket.left(now_s))),
                    ("reset", duration_text(bucket.full_s(now_s))),
                ):
                    found.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
        return found


class RateLimits:
    """
    The limits of all keys, by name.

    Those whose buckets are full again are forgotten once there are many: what a key spent counts
    until it has flowed in again, however many other keys come and go.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, KeyLimits] = {}
        self._sweep_over = MOST_KEYS

    def of(self, key: ServedKey, now_s: float) -> KeyLimits:
        """
        Return the limits of *key*; those that changed since begin with what was spent before.
        """
        limits = self._by_name.get(key.name)
        if limits is None:
            if len(self._by_name) >= self._sweep_over:
                self._sweep(now_s)
            limits = self._by_name[key.name] = KeyLimits()
        limits.requests = _bucket(limits.requests, key.requests_per_minute, now_s)
        limits.tokens = _bucket(limits.tokens, key.tokens_per_minute, now_s)
        return limits

    def _sweep(self, now_s: float) -> None:
        self._by_name = {
            name: limits
            for name, limits in self._by_name.items()
            if not limits.are_untouched(now_s)
        }
        # Where most are in use, the next one pays after as many again.
        self._sweep_over = max(MOST_KEYS, 2 * len(self._by_name))


def _bucket(held: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    if held is None:
        return Bucket(per_minute, now_s)
    if held.per_minute != per_minute:
        held.resize(per_minute, now_s)
    return held


def duration_text(seconds: float) -> str:
    """
    Return *seconds* as OpenAI writes it: 250ms, 12s, 1m5s; rounded up.
    """
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
