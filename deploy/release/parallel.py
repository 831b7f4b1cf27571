"""
The same work on several hosts at once; an error of one host is that host's alone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from deploy.errors import DeployError, TransportError

WORKERS = 64  # at once; more connections gain nothing on one operator's machine


def on_each(
    hosts: Iterable[str], work: Callable[[str], None], *, within_s: float | None = None
) -> dict[str, DeployError]:
    """
    Run *work* for all *hosts* at once; return the errors by host.

    An exception that is no DeployError is our bug: it becomes an error of its host, with the
    exception as cause, so that the other hosts' work still ends.

    Args:
        within_s: Wait for so long; a host that has not ended by then has a TransportError, and
            what it does later is not waited for.
    """
    names = list(dict.fromkeys(hosts))
    todo, errors, unfinished = deque(names), dict[str, DeployError](), set(names)
    changed = threading.Condition()
    ends: list[BaseException] = []

    def run() -> None:
        while True:
            try:
                host = todo.popleft()
            except IndexError:
                return
            error: DeployError | None = None
            try:
                work(host)
            except DeployError as known:
                error = known
            except Exception as unknown:
                error = unexpected(host, unknown)
            except BaseException as end:  # of the whole process: raised where it is waited for
                ends.append(end)
            with changed:
                if host in unfinished:
                    unfinished.remove(host)
                    if error is not None:
                        errors[host] = error
                changed.notify()

    for _ in range(min(WORKERS, len(names))):
        threading.Thread(target=run, daemon=True).start()
    with changed:
        try:
            _wait(changed, unfinished, within_s)
        except BaseException:  # interrupted: what has begun ends first
            unfinished.difference_update(todo)
            todo.clear()
            _wait(changed, unfinished, within_s)
            raise
        for host in unfinished:
            errors[host] = _late(host, within_s or 0.0)
        unfinished.clear()
    if ends:
        raise ends[0]
    return {host: errors[host] for host in names if host in errors}


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


def _wait(changed: threading.Condition, unfinished: set[str], within_s: float | None) -> None:
    until_s = None if within_s is None else time.monotonic() + within_s
    while unfinished:
        left_s = None if until_s is None else until_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            return
        changed.wait(left_s)


def _late(host: str, within_s: float) -> DeployError:
    return TransportError(
        f"{host}: no answer in time",
        why=f"it did not answer within {within_s:g} s",
        fix="inv status shows it when it answers again",
        host=host,
    )
