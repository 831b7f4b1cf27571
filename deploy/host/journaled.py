"""
Runs one step that changes the host: lease check, intent, effect, result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.host.files import locked
from deploy.host.journal import Journal, result_of
from deploy.host.lease import Leases
from deploy.host.protocol import Call, ErrorKind, HostError
from deploy.host.records import Event, Intent, Result
from deploy.host.system import System

LOCK_TIMEOUT_S = 10.0  # no verb holds the lock across a longer wait


class Operation:
    """
    A step in progress.

    Attributes:
        result: Message for the journal's result line; the verb returns the same one.
    """

    def __init__(self, system: System, call: Call, needs_lease: bool) -> None:
        self._system = system
        self._call = call
        self._needs_lease = needs_lease
        self.result: Any = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Hold the host's lock for a change that takes no time, under a lease in force.

        Raises:
            HostError: The lease was lost since.
        """
        with locked(self._system, self._system.layout.lock, LOCK_TIMEOUT_S):
            if self._needs_lease or self._call.fence is not None:
                Leases(self._system).check(self._call.fence)
            yield


@contextmanager
def journaled(
    system: System, call: Call, verb: str, args: dict[str, Any], *, needs_lease: bool = True
) -> Iterator[Operation]:
    """
    Write the intent of *verb*, let the caller do the work, write its result.

    The lock is not held while the caller works: each change goes into `Operation.locked`.
    A killed process writes no result, which `status` reports as unfinished.

    Args:
        args: Arguments for the journal; the same when the same thing is done again.
        needs_lease: False for verbs that only add immutable content.
    """
    op = Operation(system, call, needs_lease)
    with op.locked():
        intent = Journal(system).append(intent_of(call, verb, args))
    try:
        yield op
    except HostError as error:
        _close(system, result_of(intent, error=error))
        raise
    except Exception as error:
        crash = HostError(
            ErrorKind.COMMAND_FAILED,
            f"{verb}: the host program failed",
            repr(error),
            "the host program's standard error has the traceback",
        )
        _close(system, result_of(intent, error=crash))
        raise
    _close(system, result_of(intent, result=op.result))


def append_event(system: System, call: Call, event: str, data: dict[str, Any]) -> int:
    """
    Append *event* to the journal and return its line number; the caller holds the lock.
    """
    record = Event(call.release, call.fence, call.actor, event, data)
    return Journal(system).append(record).seq


def intent_of(call: Call, step: str, args: dict[str, Any]) -> Intent:
    """
    Return the intent of *step* under *call*, to be appended.
    """
    return Intent(call.release, call.fence, call.actor, step, args)


def _close(system: System, result: Result) -> None:
    # The result is written even if another lease is in force by now.
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Journal(system).append(result)
