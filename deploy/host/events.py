"""
The verb that writes an event of a release into the journal.
"""

from __future__ import annotations

from deploy.host.files import locked
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.lease import Leases
from deploy.host.protocol import Call, EventAppended, JournalAppend
from deploy.host.system import System


def append(system: System, call: Call, request: JournalAppend) -> EventAppended:
    """
    Write an event under the caller's lease.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        return EventAppended(append_event(system, call, request.step, request.data))
