"""
The host's own way back: what is not confirmed in time, the host takes back by itself.
"""

from __future__ import annotations

import json

from deploy.host.files import locked, write_atomic
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.lease import Leases
from deploy.host.protocol import (
    Armed,
    Call,
    Confirmed,
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    Disarmed,
    Pending,
)
from deploy.host.reserve import with_room
from deploy.host.system import System


def arm(system: System, call: Call, request: DeadmanArm) -> Armed:
    """
    Write down what the host takes back by itself when no lease is in force any more.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        leases = Leases(system)
        lease = leases.check(call.fence)
        document = {
            "release": call.release or "",
            "epoch": lease.epoch,
            "to_slot": request.to_slot,
            "from_slot": request.from_slot,
        }
        data = json.dumps(document).encode()
        with_room(system, lambda: write_atomic(system.layout.pending, data, 0o640))
        append_event(system, call, request.VERB, document)
        return Armed(leases.left_s(lease))


def confirm(system: System, call: Call, request: DeadmanConfirm) -> Confirmed:
    """
    Keep the new release.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        was_armed = pending(system) is not None
        system.layout.pending.unlink(missing_ok=True)
        system.layout.went_back.unlink(missing_ok=True)
        append_event(system, call, request.VERB, {"bundle": request.bundle})
    return Confirmed(was_armed)


def disarm(system: System, call: Call, request: DeadmanDisarm) -> Disarmed:
    """
    The host is back where it was.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        was_armed = pending(system) is not None
        system.layout.pending.unlink(missing_ok=True)
        if was_armed:
            append_event(system, call, request.VERB, {})
    return Disarmed(was_armed)


def pending(system: System) -> Pending | None:
    """
    Return what the host takes back by itself; None without anything.
    """
    try:
        document = json.loads(system.layout.pending.read_bytes())
    except (OSError, ValueError):
        return None
    lease = Leases(system).in_force()
    left_s = Leases(system).left_s(lease) if lease is not None else 0.0
    return Pending(left_s=left_s, **document)
