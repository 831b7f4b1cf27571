"""
Starts and stops slots: the link to a release, and the unit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from deploy.host.bundle.admission import check_startable
from deploy.host.files import link_atomic
from deploy.host.journaled import Operation, journaled
from deploy.host.layout import Layout, slot_mount, unit
from deploy.host.protocol import (
    Call,
    ErrorKind,
    HostError,
    SlotStart,
    SlotStarted,
    SlotStop,
    SlotStopped,
)
from deploy.host.reserve import with_room
from deploy.host.slots import systemd
from deploy.host.slots.haproxy import Haproxy
from deploy.host.system import System
from deploy.host.trusted_files import MANIFEST_MAX, read_below

STARTING_CPU_WEIGHT = 20
SERVING_CPU_WEIGHT = 100

Locked = Callable[[], AbstractContextManager[None]]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.2
_GRACE_S = 1.0  # until systemd shows a queued start
_STOP_AFTER_FAILURE_S = 3.0  # it serves nobody
_KILL_S = 10.0  # until the processes of a killed slot have gone


def linked_bundle(layout: Layout, slot: str) -> str | None:
    """
    Return the digest of the bundle that *slot* links to; None without a link.
    """
    try:
        bundle = os.path.basename(os.readlink(layout.slot_link(slot)))  # noqa: PTH115, PTH119
    except OSError:
        return None
    return bundle if _DIGEST.fullmatch(bundle) else None


def version_of(layout: Layout, bundle: str | None) -> str | None:
    """
    Return the version of *bundle*; None when its release is missing or damaged.
    """
    if bundle is None:
        return None
    try:
        manifest = read_below(layout.release(bundle), "manifest.json", MANIFEST_MAX)
        version = json.loads(manifest)["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) else None


def start(system: System, call: Call, request: SlotStart) -> SlotStarted:
    """
    Start the bundle in the slot, and return when it is READY; after a failure it is stopped.
    """
    slot, bundle = request.slot, request.bundle
    name = unit(slot)
    args: dict[str, Any] = {"slot": slot, "bundle": bundle}
    if request.allow_older:
        args["allow_older"] = True
    with journaled(system, call, request.VERB, args) as op:
        began_s, began_at = system.steady_s(), system.wall_s()
        with op.locked():
            before = systemd.show(system, [name])[name]
            runs_already = _refuse_unless_free(system, slot, bundle, before)
            if not runs_already:
                check_startable(system, bundle, allow_older=request.allow_older)
        if not runs_already:
            # The rest of an earlier release could fill or poison the files of this one.
            _clear(system, op, slot)
        with op.locked():
            if not runs_already:
                with_room(system, lambda: _link(system.layout, slot, bundle))
            systemd.enable(system, name)
            if not runs_already:
                # Loading must not slow the serving slot; traffic.set makes the weights equal.
                systemd.set_cpu_weight(system, name, STARTING_CPU_WEIGHT)
                systemd.begin_start(system, name)
        ended = wait_started(
            system, name, 0 if not runs_already else before.restarts, request.timeout_s
        )
        if ended is None or ended.active != "active":
            log = systemd.last_log(system, name, began_at)
            stopped = _stop_again(system, op, name)
            how = "it was not READY in time" if ended is None else ending(ended)
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"{name} did not start with bundle {bundle[:12]}",
                f"{how}{stopped}; its last log lines: {log}",
                f"journalctl -u {name} on the host; the other slot was not touched",
            )
        result = SlotStarted(
            slot=slot,
            bundle=bundle,
            unit=ended.active,
            restarts=ended.restarts,
            started=not runs_already,
            took_s=round(system.steady_s() - began_s, 3),
        )
        op.result = result
    return result


def stop(system: System, call: Call, request: SlotStop) -> SlotStopped:
    """
    Stop the slot and disable it for the next boot; refused while it may take requests.

    A slot that has not ended after *timeout_s* is killed, whatever it told systemd.
    """
    slot = request.slot
    name = unit(slot)
    with journaled(system, call, request.VERB, {"slot": slot}) as op:
        began_s, began_at = system.steady_s(), system.wall_s()
        with op.locked():
            before = systemd.show(system, [name])[name]
            if not before.is_stopped:
                _refuse_if_serving(system, slot)
            systemd.disable(system, name)
            systemd.begin_stop(system, name)
        ended = end(system, op.locked, name, request.timeout_s)
        if ended is None:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"{name} did not end within {request.timeout_s:.0f} s, nor when it was killed",
                f"its last log lines: {systemd.last_log(system, name, began_at)}",
                f"systemctl status {name} on the host; the kernel does not end its processes "
                "while a device blocks them",
            )
        result = SlotStopped(
            slot=slot,
            unit=ended.active,
            stopped=not before.is_stopped,
            took_s=round(system.steady_s() - began_s, 3),
        )
        op.result = result
    return result


def _link(layout: Layout, slot: str, bundle: str) -> None:
    link, target = layout.slot_link(slot), layout.release(bundle)
    # A slot that returns to its own release writes nothing: the disk may be full.
    if not (link.is_symlink() and link.readlink() == target):
        layout.slot_links.mkdir(parents=True, exist_ok=True)
        link_atomic(link, target)


def _refuse_unless_free(system: System, slot: str, bundle: str, before: systemd.Unit) -> bool:
    """
    Return whether the slot runs *bundle* already.
    """
    if not system.layout.release(bundle).is_dir():
        raise HostError(
            ErrorKind.PRECONDITION,
            f"bundle {bundle[:12]} is not staged",
            f"{system.layout.release(bundle)} is missing",
            "stage it first: stage.commit",
        )
    systemd.check_startable(before)
    linked = linked_bundle(system.layout, slot)
    if before.runs and linked != bundle:
        raise HostError(
            ErrorKind.PRECONDITION,
            f"slot {slot} is in use",
            f"it runs bundle {(linked or 'none')[:12]} ({before.active})",
            f"stop it first: slot.stop, slot {slot}",
        )
    return before.runs


def _refuse_if_serving(system: System, slot: str) -> None:
    fix = "take its requests away first: traffic.set, traffic.drain"
    try:
        server = Haproxy(system).servers()[slot]
    except HostError as error:
        raise HostError(
            ErrorKind.PRECONDITION,
            f"it is unknown whether slot {slot} takes requests",
            error.why,
            fix,
        ) from None
    if server.weight:
        why = f"its weight is {server.weight}, HAProxy reports {server.status}"
        raise HostError(ErrorKind.PRECONDITION, f"slot {slot} takes requests", why, fix)


def wait_started(system: System, name: str, restarts: int, timeout_s: float) -> systemd.Unit | None:
    """
    Return the unit once it is READY or has failed; None after *timeout_s*.

    A unit that systemd restarts after a crash counts as failed.
    """
    began_s = system.steady_s()

    def ended() -> systemd.Unit | None:
        state = systemd.show(system, [name])[name]
        if state.sub == "auto-restart" or state.restarts > restarts or state.active == "failed":
            return state._replace(active="failed")
        idle = state.active == "inactive" and not state.has_job
        is_late = system.steady_s() - began_s > _GRACE_S
        return state if state.active == "active" or (idle and is_late) else None

    return system.poll_until(ended, timeout_s, _POLL_S)


def _wait_stopped(system: System, name: str, timeout_s: float) -> systemd.Unit | None:
    def ended() -> systemd.Unit | None:
        state = systemd.show(system, [name])[name]
        return state if state.has_ended else None

    return system.poll_until(ended, timeout_s, _POLL_S)


def end(system: System, locked: Locked, name: str, timeout_s: float) -> systemd.Unit | None:
    """
    Return the unit once it has ended: by itself within *timeout_s*, or killed; None if neither.

    Args:
        locked: Holds the host's lock for one change, while the caller may still change the host.
    """
    ended = _wait_stopped(system, name, timeout_s)
    if ended is not None:
        return ended

    def killed() -> systemd.Unit | None:
        # Again each time: a process may have started another one meanwhile.
        with locked():
            systemd.kill(system, name)
        return _wait_stopped(system, name, _POLL_S)

    return system.poll_until(killed, _KILL_S, _POLL_S)


def _clear(system: System, op: Operation, slot: str) -> None:
    """
    End what is left of an earlier release in *slot*, and give the slot an empty file system.
    """
    name = unit(slot)
    if not systemd.show(system, [name])[name].has_ended and end(system, op.locked, name, 0) is None:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"processes of the earlier release of slot {slot} do not end",
            f"{name} was killed, and {_KILL_S:.0f} s later they are still there",
            f"systemctl status {name} on the host; the other slot was not touched",
        )
    with op.locked():
        systemd.unmount(system, slot_mount(slot))


def _stop_again(system: System, op: Operation, name: str) -> str:
    with op.locked():
        systemd.disable(system, name)
        systemd.begin_stop(system, name)
    if end(system, op.locked, name, _STOP_AFTER_FAILURE_S) is None:
        return ", and it has not stopped yet"
    return ", and was stopped"


def ending(state: systemd.Unit) -> str:
    if state.active == "inactive":
        return "systemd did not start it (a condition of the unit failed)"
    if state.exit_status:
        return f"it ended: {state.result}, status {state.exit_status}"
    return f"it ended: {state.result or state.sub}"
