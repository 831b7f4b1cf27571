"""
The verbs of an operator: arm the host's own way back, confirm a change, disarm it.
"""

from __future__ import annotations

from typing import Any

from deploy.host.deadman import pending, self_test
from deploy.host.deadman.pending import Way
from deploy.host.files import locked, remove, sync_directory
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
    ErrorKind,
    HostError,
)
from deploy.host.slots.haproxy import Haproxy
from deploy.host.slots.public_port import ask_public
from deploy.host.slots.slot import linked_bundle
from deploy.host.system import System


def arm(system: System, call: Call, request: DeadmanArm) -> Armed:
    """
    Write down what the host takes back by itself when no lease is in force any more.

    Repeated, also under a newer epoch, it keeps what was written down before the change.  Its own
    release, and one of a newer epoch, may turn it round, to the slot of the change, as long as that
    slot has no traffic: a rollback whose target has become ready, also after an earlier one died.
    """
    if request.from_slot == request.to_slot:
        raise HostError(
            ErrorKind.USAGE,
            f"{request.VERB}: from_slot and to_slot are both {request.to_slot}",
            "a slot is no way back from itself",
            "name the slot that serves as from_slot",
        )
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        leases = Leases(system)
        lease = leases.check(call.fence)
        self_test.refuse_untested(system)
        held = _held_or_aside(system)
        from_slot = request.from_slot
        may_turn = held is not None and (held.release == call.release or held.epoch < lease.epoch)
        if held is not None and not (may_turn and _is_turned(system, held, request)):
            _refuse_another(system, held, request)
            is_same = held.release == call.release
            from_slot = held.from_slot if is_same else held.from_slot or from_slot
        boot_id = system.boot_id()
        way = Way(call.release or "", lease.epoch, request.to_slot, from_slot, boot_id)
        if way != held:
            pending.forget_end(system, way)
            # First the journal: it has each way from which a damaged file is written again.
            append_event(system, call, request.VERB, _shown(way))
            pending.write(system, way)
        return Armed(leases.left_s(lease))


def confirm(system: System, call: Call, request: DeadmanConfirm) -> Confirmed:
    """
    Keep the new release, once a request through the public port was answered by it.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        way = _held(system)
        if way is None:
            _refuse_unconfirmed(system, call)
            return Confirmed(checked=False)
        _refuse_unlike(system, way, call, request)
    if request.ask:
        ask_public(system, way.to_slot, request.version)
    if not request.keep:
        return Confirmed(checked=request.ask)
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        if not way.is_same(pending.read(system)):
            raise _not_armed("what is pending changed while the public port was asked")
        # First this file: a call that is repeated after a crash finds the host still armed.
        remove(system.layout.went_back)
        pending.end(system, system.layout.confirmed)
        data = {"bundle": request.bundle, "version": request.version}
        append_event(system, call, request.VERB, data)
    return Confirmed(checked=request.ask)


def disarm(system: System, call: Call, request: DeadmanDisarm) -> Disarmed:
    """
    End the way back of a host that is back; refused while the slot of the change has traffic.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        way = _held(system)
        if way is None:
            return Disarmed(disarmed=False)
        server = Haproxy(system).servers()[way.to_slot]
        if server.weight:
            raise HostError(
                ErrorKind.PRECONDITION,
                f"slot {way.to_slot} still takes requests",
                f"its weight is {server.weight}, and release {way.release} is not confirmed",
                f"take its requests away first: traffic.set, with {way.to_slot} at 0",
            )
        system.layout.pending.unlink()
        sync_directory(system.layout.state)
        append_event(system, call, request.VERB, _shown(way))
    return Disarmed(disarmed=True)


def _held(system: System) -> Way | None:
    """
    Return what is pending.

    Raises:
        HostError: Its file is damaged, and the journal does not tell either.
    """
    pending.repair(system)
    return pending.read(system)


def _held_or_aside(system: System) -> Way | None:
    """
    Return what is pending; a damaged file, of which the journal tells nothing either, is put aside:
    the caller writes a new one at once, and its operator decides where the host goes.
    """
    try:
        return _held(system)
    except HostError:
        pending.put_aside(system)
        return None


def _shown(way: Way) -> dict[str, Any]:
    return {key: value for key, value in way._asdict().items() if key not in ("at", "why")}


def _is_turned(system: System, held: Way, request: DeadmanArm) -> bool:
    """
    Return whether *request* turns *held* round, while the host still is where it was before.
    """
    if held.boot_id != system.boot_id() or held.to_slot != request.from_slot:
        return False
    return Haproxy(system).servers()[held.to_slot].weight == 0


def _refuse_another(system: System, held: Way, request: DeadmanArm) -> None:
    """
    Refuse a second change on top of *held*, whose way back would be lost.
    """
    if held.boot_id != system.boot_id():
        raise HostError(
            ErrorKind.PRECONDITION,
            "the host is going back by itself",
            f"it was rebooted before release {held.release} was confirmed",
            "wait until it has gone back: inv status",
        )
    if held.to_slot != request.to_slot:
        raise HostError(
            ErrorKind.PRECONDITION,
            f"slot {held.to_slot} has a change that is not confirmed",
            f"release {held.release} goes back to {held.from_slot or 'no slot'} unless it is "
            f"confirmed; a change of slot {request.to_slot} would take that away",
            "confirm it, or take it back and disarm it: inv status",
        )


def _refuse_unconfirmed(system: System, call: Call) -> None:
    """
    Refuse the confirmation of what is not pending, unless it is confirmed already.
    """
    back, last = pending.went_back(system), pending.confirmed(system)
    if back is not None and back.release == call.release:
        raise _not_armed(f"the host went back by itself at {back.at}: {back.why}")
    if last is None or last.release != call.release:
        raise _not_armed("nothing is pending on it")


def _refuse_unlike(system: System, way: Way, call: Call, request: DeadmanConfirm) -> None:
    if way.boot_id != system.boot_id():
        raise _not_armed("it was rebooted since, and goes back by itself")
    if way.release != call.release:
        raise _not_armed(f"it is armed for release {way.release}")
    linked = linked_bundle(system.layout, way.to_slot)
    if linked != request.bundle:
        raise _not_armed(f"slot {way.to_slot} has bundle {(linked or 'none')[:12]}")


def _not_armed(why: str) -> HostError:
    return HostError(
        ErrorKind.PRECONDITION,
        "the host is not armed for what is to be confirmed",
        why,
        "inv status, then release again",
    )
