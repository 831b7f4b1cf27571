"""
The verbs of the desired state: what the fleet should be, as the newest operator wrote it.

The text means nothing to a host.  It is stored beside the epoch of the lease that it came under.
"""

from __future__ import annotations

import hashlib
import json

from deploy.host.files import locked, write_atomic
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.layout import Layout
from deploy.host.lease import Leases
from deploy.host.protocol import (
    STATE_MAX,
    Call,
    ErrorKind,
    HostError,
    StateRead,
    StateStamp,
    StateText,
    StateWrite,
)
from deploy.host.reserve import with_room
from deploy.host.system import System
from deploy.host.trusted_files import read_plain


def write(system: System, call: Call, request: StateWrite) -> StateStamp:
    """
    Store the text under the epoch of the caller's lease.
    """
    data = request.text.encode()
    if len(data) > STATE_MAX:
        raise HostError(
            ErrorKind.USAGE,
            "the desired state is too large",
            f"it has {len(data)} bytes, at most {STATE_MAX} are stored",
            "release to fewer hosts at a time: --limit",
        )
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        lease = Leases(system).check(call.fence)
        stamp = StateStamp(lease.epoch, request.number, hashlib.sha256(data).hexdigest())
        _refuse_older(stored(system.layout).stamp, stamp)
        document = {"epoch": stamp.epoch, "number": stamp.number, "text": request.text}
        content = json.dumps(document).encode()
        with_room(system, lambda: write_atomic(system.layout.desired, content, 0o640))
        event = {"number": stamp.number, "sha256": stamp.sha256}
        append_event(system, call, request.VERB, event)
    return stamp


def read(system: System, _call: Call, _request: StateRead) -> StateText:
    """
    Return the text as it is stored.
    """
    return stored(system.layout)


def stored(layout: Layout) -> StateText:
    """
    Return the stored desired state; without one, or with a damaged one, its stamp is None.
    """
    nothing = StateText(None, "")
    try:
        document = json.loads(read_plain(layout.desired))
        epoch, number, text = document["epoch"], document["number"], document["text"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return nothing
    if not (isinstance(epoch, int) and isinstance(number, int) and isinstance(text, str)):
        return nothing
    return StateText(StateStamp(epoch, number, hashlib.sha256(text.encode()).hexdigest()), text)


def _refuse_older(held: StateStamp | None, new: StateStamp) -> None:
    if new.epoch == 0:
        raise HostError(
            ErrorKind.PRECONDITION,
            "the lease is for no epoch",
            "a desired state belongs to one",
            "take the lease with an epoch: lease.acquire",
        )
    if held is None or held == new:
        return
    if (held.epoch, held.number) >= (new.epoch, new.number):
        raise HostError(
            ErrorKind.PRECONDITION,
            f"desired state {new.epoch}.{new.number} is not new",
            f"this host holds {held.epoch}.{held.number}",
            "inv status, then the command again",
        )
