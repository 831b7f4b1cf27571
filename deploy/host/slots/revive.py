"""
Brings back what should run and does not: directories, HAProxy, the units of slots.
"""

from __future__ import annotations

import os

from deploy.host import layout as paths
from deploy.host.journaled import Operation, journaled
from deploy.host.layout import HAPROXY_UNIT, SLOTS, unit
from deploy.host.protocol import Call, ErrorKind, HostError, Revive, Revived
from deploy.host.slots import systemd
from deploy.host.slots.haproxy import Haproxy
from deploy.host.slots.slot import ending, linked_bundle, wait_started
from deploy.host.system import System
from deploy.host.text import one_line

_PROXY_S = 15.0  # until HAProxy answers after its start
_TMPFILES_S = 20.0
_POLL_S = 0.1


def run(system: System, call: Call, request: Revive) -> Revived:
    """
    Bring back the directories, then HAProxy, then the slots.

    A named slot that is masked, or does not start, is an error after everything else is back.
    """
    with journaled(system, call, request.VERB, {"slots": sorted(request.slots)}) as op:
        done = _make_directories(system, op)
        done += _revive_proxy(system, op)
        done += _revive_slots(system, op, request)
        op.result = Revived(tuple(done))
    return Revived(tuple(done))


def _has_directories(system: System) -> bool:
    return all(system.layout.runtime_socket(slot).parent.is_dir() for slot in SLOTS)


def _make_directories(system: System, op: Operation) -> list[str]:
    if _has_directories(system):
        return []
    argv = ["systemd-tmpfiles", "--create", paths.TMPFILES]
    with op.locked():
        completed = system.run(argv, timeout_s=_TMPFILES_S)
    if not _has_directories(system):
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"the directories below {paths.RUN} cannot be made",
            one_line(completed.stderr) or f"{' '.join(argv)}: status {completed.returncode}",
            "inv provision",
        )
    return [f"{paths.RUN} made again"]


def _revive_proxy(system: System, op: Operation) -> list[str]:
    proxy = Haproxy(system)
    if _answers(proxy):
        return []
    with op.locked():
        found = systemd.show(system, [HAPROXY_UNIT])[HAPROXY_UNIT]
        systemd.check_startable(found)
        # A reload binds no socket that was removed, so one that runs is restarted.
        systemd.restart(system, HAPROXY_UNIT)
    if not system.poll_until(lambda: _answers(proxy) or None, _PROXY_S, _POLL_S):
        now = systemd.show(system, [HAPROXY_UNIT])[HAPROXY_UNIT]
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "HAProxy does not answer after its start",
            f"{HAPROXY_UNIT} is {now.active} ({now.result or now.sub})",
            "journalctl -u haproxy on the host, then inv provision",
        )
    return [f"HAProxy {'restarted' if found.runs else 'started'}"]


def _answers(proxy: Haproxy) -> bool:
    try:
        proxy.servers()
    except HostError:
        return False
    return True


def _revive_slots(system: System, op: Operation, request: Revive) -> list[str]:
    servers = Haproxy(system).servers()
    wanted = [slot for slot in SLOTS if slot in request.slots or servers[slot].weight]
    units = systemd.show(system, [unit(slot) for slot in wanted]) if wanted else {}
    begun, waited = [], []
    for slot in wanted:
        found = units[unit(slot)]
        if not _needs_start(system, slot, found):
            if slot in request.slots and found.active == "activating":
                waited.append(slot)  # an earlier call has begun it
            continue
        if slot in request.slots:
            systemd.check_startable(found)
        elif found.is_masked:
            continue
        with op.locked():
            systemd.enable(system, found.name)
            systemd.restart(system, found.name)
        begun.append(slot)
    began_at = system.wall_s()
    for slot in (*waited, *(slot for slot in begun if slot in request.slots)):
        _wait(system, slot, began_at, request.timeout_s)
    return [f"slot {slot} started" for slot in begun]


def _needs_start(system: System, slot: str, found: systemd.Unit) -> bool:
    bundle = linked_bundle(system.layout, slot)
    if bundle is None or not system.layout.release(bundle).is_dir():
        return False
    # systemd makes the link to the socket before a start is complete.
    has_socket = os.path.lexists(system.layout.runtime_socket(slot))
    return not found.runs or (found.active == "active" and not has_socket)


def _wait(system: System, slot: str, began_at: float, timeout_s: float) -> None:
    ended = wait_started(system, unit(slot), 0, timeout_s)
    if ended is None or ended.active != "active":
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"{unit(slot)} did not start again",
            f"{'it was not READY in time' if ended is None else ending(ended)}; its last log "
            f"lines: {systemd.last_log(system, unit(slot), began_at)}",
            f"journalctl -u {unit(slot)} on the host",
        )
