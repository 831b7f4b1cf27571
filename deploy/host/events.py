"""
The verbs that write an event of a release into the journal, and read the journal.
"""

from __future__ import annotations

from deploy.host.files import locked
from deploy.host.journal import Journal
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.lease import Leases
from deploy.host.protocol import (
    JOURNAL_PAGE_MAX,
    Call,
    EventAppended,
    JournalAppend,
    JournalPage,
    JournalRead,
)
from deploy.host.system import System


def append(system: System, call: Call, request: JournalAppend) -> EventAppended:
    """
    Write an event under the caller's lease.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        return EventAppended(append_event(system, call, request.step, request.data))


def read(system: System, _call: Call, request: JournalRead) -> JournalPage:
    """
    Return one page of the journal, as it is on disk.
    """
    lines: list[str] = []
    last_seq, size = request.after_seq, 0
    for number, line in Journal(system).lines(request.after_seq):
        size += len(line)
        if lines and (len(lines) == request.limit or size > JOURNAL_PAGE_MAX):
            return JournalPage(tuple(lines), last_seq, is_end=False)
        lines.append(line.decode(errors="replace")[:JOURNAL_PAGE_MAX])
        last_seq = number
    return JournalPage(tuple(lines), last_seq, is_end=True)
