"""
The same work on several hosts at once; an error of one host is that host's alone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable

from deploy.errors import DeployError, TransportError

WORKERS = 64  # at once; more connections gain nothing on one operator's machine
GRACE_S = 0.2  # at least, for hosts that were late before, once all others have answered


def on_each(
    hosts: Iterable[str],
    work: Callable[[str], None],
    *,
    within_s: float | None = None,
    late: Collection[str] = (),
) -> dict[str, DeployError]:
    """
    Run *work* for all *hosts* at once; return the errors by host.

    An exception that is no DeployError is our bug: it becomes an error of its host, with the
    exception as cause, so that the other hosts' work still ends.

    Args:
        within_s: Wait for each host so long, from when its work began; one that has not ended by
            then has a TransportError, what it does later is not waited for, and another host
            begins in its place.
        late: Hosts that did not answer in time before.  They are asked with the others, and waited
            for three times as long as the slowest of those; whole, where none of them succeeds.
    """
    names = list(dict.fromkeys(hosts))
    crew = _Crew(names, work, within_s, late)
    crew.run(min(WORKERS, len(names)))
    return {host: crew.errors[host] for host in names if host in crew.errors}


class _Crew:
    """
    The workers of one call.

    Attributes:
        errors: By host.
    """

    def __init__(
        self,
        names: list[str],
        work: Callable[[str], None],
        within_s: float | None,
        late: Collection[str],
    ) -> None:
        self.errors: dict[str, DeployError] = {}
        self._others = set(names).difference(late)  # that have not ended
        self._slowest_s: float | None = None  # of the others that succeeded
        self._work, self._within_s = work, within_s
        self._todo, self._unfinished = deque(names), set(names)
        self._began_s: dict[str, float] = {}  # of hosts at work, the earliest first
        self._changed = threading.Condition()
        self._ends: list[BaseException] = []

    def run(self, workers: int) -> None:
        """
        Do the work of all hosts; where this thread is interrupted, what has begun ends first.
        """
        try:
            for number in range(workers):
                self._start_worker(is_needed=number == 0)
            with self._changed:
                self._wait()
        except BaseException:
            with self._changed:
                self._unfinished.difference_update(self._todo)
                self._todo.clear()
                self._wait()
            raise
        if self._ends:
            raise self._ends[0]

    def _start_worker(self, *, is_needed: bool) -> None:
        """
        Start one worker; where no thread can be started, those that run do the work.
        """
        try:
            threading.Thread(target=self._run, daemon=True).start()
        except RuntimeError:
            if is_needed:
                raise

    def _run(self) -> None:
        while (host := self._next()) is not None:
            error: DeployError | None = None
            try:
                self._work(host)
            except DeployError as known:
                error = known
            except Exception as unknown:
                error = unexpected(host, unknown)
            except BaseException as end:  # of the whole process: raised where it is waited for
                self._ends.append(end)
            if not self._finish(host, error):
                return

    def _next(self) -> str | None:
        with self._changed:
            if not self._todo:
                return None
            host = self._todo.popleft()
            self._began_s[host] = time.monotonic()
            if len(self._began_s) == 1:
                self._changed.notify()
            return host

    def _finish(self, host: str, error: DeployError | None) -> bool:
        """
        Note the end of *host*; False where it was given up, and this worker with it.
        """
        with self._changed:
            began_s = self._began_s.pop(host, None)
            if began_s is None:
                return False
            self._unfinished.discard(host)
            if error is not None:
                self.errors[host] = error
            elif host in self._others:
                self._slowest_s = max(self._slowest_s or 0.0, time.monotonic() - began_s)
            self._others.discard(host)
            if not self._others or not self._unfinished:
                self._changed.notify()
            return True

    def _wait(self) -> None:
        while self._unfinished:
            self._changed.wait(self._give_up_late())

    def _give_up_late(self) -> float | None:
        """
        Give up hosts whose time is over; return when to look again, in seconds.
        """
        if self._within_s is None:
            return None
        lefts_s = []
        for host, began_s in list(self._began_s.items()):
            left_s = self._ends_s(host, began_s) - time.monotonic()
            if left_s > 0:
                lefts_s.append(left_s)
                continue
            del self._began_s[host]
            self._unfinished.discard(host)
            self._others.discard(host)
            self.errors[host] = _late(host, self._within_s)
            if self._todo:
                self._start_worker(is_needed=not self._began_s)
        if not self._unfinished:
            return 0.0
        return min(lefts_s, default=None)

    def _ends_s(self, host: str, began_s: float) -> float:
        """
        Return until when to wait for *host*.
        """
        assert self._within_s is not None
        limit_s = self._within_s
        if not self._others and self._slowest_s is not None:  # those late before are left
            limit_s = min(limit_s, max(GRACE_S, 3 * self._slowest_s))
        return began_s + limit_s


def unexpected(host: str, error: Exception) -> DeployError:
    """
    Return *error*, which the toolkit did not foresee, as an error of *host*.
    """
    internal = DeployError(
        f"{host}: an internal error of slipway",
        why=repr(error),
        fix="report it with the traceback that --debug prints",
        host=host,
    )
    internal.__cause__ = error
    return internal


def _late(host: str, within_s: float) -> DeployError:
    return TransportError(
        f"{host}: no answer in time",
        why=f"it did not answer within {within_s:g} s",
        fix="inv status shows it when it answers again",
        host=host,
    )
