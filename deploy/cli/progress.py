"""
Says what a task waits for: on which host, since when and how much longer at most.

A line is written at least every two seconds while something is awaited, so that a silent terminal
means a dead one.  All of it goes to standard error and is the same with and without a terminal.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.cli.terminal import print_progress
from deploy.foreign_text import listed

QUIET_S = 1.6  # of silence before a heartbeat; with the tick below, a line at least every 2 s
_TICK_S = 0.3


@dataclass(frozen=True, slots=True)
class Wait:
    """
    Something that is awaited.

    Attributes:
        since_s: When it began, by the progress's monotonic clock.
        limit_s: Longest time that it takes, in seconds; None: not known.
    """

    what: str
    since_s: float
    limit_s: float | None = None


class Progress:
    """
    Lines of progress, and what is awaited at the moment, by host.  May be used by many threads.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None] = print_progress,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock = write, clock
        self._waits: dict[str, Wait] = {}
        self._lock = threading.RLock()
        self._spoke_s = clock()
        self._printed: list[str] = []

    @property
    def printed(self) -> tuple[str, ...]:
        """
        The lines so far, without heartbeats.
        """
        return tuple(self._printed)

    def __call__(self, line: str) -> None:
        """
        Write a line; where no host is waited for by name, the step after it is.
        """
        with self._lock:
            self._printed.append(line)
            self.write(line)
            if "" in self._waits:
                self.wait_for(f'the step after "{line.strip("= ")}"')

    def write(self, line: str, write: Callable[[str], None] | None = None) -> None:
        """
        Write a line, by *write* where it goes elsewhere.
        """
        with self._lock:
            self._spoke_s = self._clock()
            (write or self._write)(line)

    def wait_for(
        self, what: str, hosts: Iterable[str] = ("",), limit_s: float | None = None
    ) -> None:
        """
        Say that *hosts* are now waited for, in place of what they were waited for before.
        """
        with self._lock:
            now_s = self._clock()
            self._waits |= {host: Wait(what, now_s, limit_s) for host in hosts}

    def end_wait(self, *hosts: str) -> None:
        """
        Say that *hosts* are not waited for any more; without one, that nothing is.
        """
        with self._lock:
            for host in hosts or tuple(self._waits):
                self._waits.pop(host, None)

    @property
    def is_waiting(self) -> bool:
        with self._lock:
            return bool(self._waits)

    def beat(self) -> None:
        """
        Write what is awaited, if something is and nothing was written for a while.
        """
        with self._lock:
            if self._waits and self._clock() - self._spoke_s >= QUIET_S:
                self.write(describe(self._waits, self._clock()))

    @contextmanager
    def beating(self) -> Iterator["Progress"]:
        """
        Call `beat` from a thread until the block ends.
        """
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(_TICK_S):
                self.beat()

        thread = threading.Thread(target=run, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()


@contextmanager
def waiting(what: str) -> Iterator[Progress]:
    """
    Yield a progress that waits for *what* until it is told more.
    """
    progress = Progress()
    progress.wait_for(what)
    with progress.beating():
        yield progress


def describe(waits: dict[str, Wait], now_s: float) -> str:
    """
    Return one line for *waits*: hosts that wait for the same thing are named together.

        n1, n2: waiting for the start of the new slot: 4 s so far, at most 1m26s left
    """
    groups: dict[tuple[str, float | None], list[str]] = {}
    for host, wait in waits.items():
        groups.setdefault((wait.what, wait.limit_s), []).append(host)
    parts = []
    for (what, limit_s), hosts in groups.items():
        since_s = min(waits[host].since_s for host in hosts)
        names = listed(filter(None, hosts))
        text = f"{names}: " if names else ""
        text += f"waiting for {what}: {_whole(now_s - since_s)} so far"
        if limit_s is not None:
            left_s = since_s + limit_s - now_s
            is_over = left_s <= 0
            text += (
                f", {_whole(-left_s)} over its limit"
                if is_over
                else (f", at most {_whole(left_s)} left")
            )
        parts.append(text)
    return "; ".join(parts)


def _whole(seconds: float) -> str:
    from deploy.units import format_duration  # imports pydantic, which most tasks do not need

    return f"{seconds:.0f} s" if seconds < 60 else format_duration(seconds)
