"""
One step that changes the host: checked against the lease, announced, done, written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.host import journal
from deploy.host.files import locked
from deploy.host.lease import Leases
from deploy.host.rpc import HostError, Request
from deploy.host.system import System

LOCK_TIMEOUT_S = 10.0  # nobody holds the lock while waiting for anything that takes longer


class Operation:
    """
    A step in the middle.

    Attributes:
        result: What its result line and the caller are told.
    """

    def __init__(self, system: System, request: Request, needs_lease: bool) -> None:
        self._system = system
        self._request = request
        self._needs_lease = needs_lease
        self.result: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Hold the lock of the host tool for a change that takes no time, under a lease in force.

        Raises:
            HostError: The lease was lost since.
        """
        with locked(self._system, self._system.layout.lock, LOCK_TIMEOUT_S):
            if self._needs_lease or self._request.fence is not None:
                Leases(self._system).check(self._request.fence)
            yield


@contextmanager
def journaled(
    system: System, request: Request, args: dict[str, Any], *, needs_lease: bool = True
) -> Iterator[Operation]:
    """
    Write the intent of the verb of *request*, let the caller do it, write its result.

    The lock is not held while the caller works: what changes the host goes into `Operation.locked`.
    A killed process writes no result, which is how `status` knows.

    Args:
        args: What is written down of the arguments; the same for the same thing done again.
        needs_lease: False for what adds immutable content and can harm nobody.
    """
    op = Operation(system, request, needs_lease)
    line = journal.entry(
        request.verb,
        journal.INTENT,
        release=request.release,
        fence=request.fence,
        actor=request.actor,
        args=args,
    )
    book = journal.Journal(system)
    with op.locked():
        intent = book.append(line)
    outcome = {**line, "phase": journal.RESULT, "intent": intent["seq"]}
    try:
        yield op
    except HostError as error:
        _close(system, {**outcome, "ok": False, "error": error.as_json()})
        raise
    except Exception as error:
        told = {"kind": "CommandFailed", "what": f"{request.verb} broke", "why": repr(error)}
        _close(system, {**outcome, "ok": False, "error": {**told, "fix": "see the host tool"}})
        raise
    _close(system, {**outcome, "ok": True, "result": op.result})


def note(system: System, request: Request, what: str, data: dict[str, Any]) -> int:
    """
    Append the event *what* to the journal and return its number; the caller holds the lock.
    """
    line = journal.entry(
        what,
        journal.EVENT,
        release=request.release,
        fence=request.fence,
        actor=request.actor,
        args=data,
    )
    return int(journal.Journal(system).append(line)["seq"])


def _close(system: System, line: dict[str, Any]) -> None:
    # Whoever holds the lease by now: what was done is written down.
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        journal.Journal(system).append(line)
