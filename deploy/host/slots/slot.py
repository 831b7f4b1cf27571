"""
What runs in a slot: its link, its unit.
"""

from __future__ import annotations

import json
import os
from typing import Any

from deploy.host.files import link_atomic
from deploy.host.journaled import Step, step
from deploy.host.layout import Layout, unit
from deploy.host.rpc import HostError, Request
from deploy.host.slots import systemd
from deploy.host.slots.haproxy import Haproxy
from deploy.host.system import World

STARTING_CPU_WEIGHT = 20
SERVING_CPU_WEIGHT = 100
_POLL_S = 0.2
_GRACE_S = 1.0  # between a start being queued and systemd showing it
_STOP_AFTER_FAILURE_S = 30.0


def linked_bundle(layout: Layout, slot: str) -> str | None:
    """
    Return the digest of the bundle that *slot* leads to; None when nothing was released there.
    """
    try:
        return os.path.basename(os.readlink(layout.slot_link(slot)))  # noqa: PTH115, PTH119
    except OSError:
        return None


def manifest_of(layout: Layout, bundle: str | None) -> dict[str, Any]:
    """
    Return the manifest of the release of *bundle*; empty when it is not there.
    """
    if bundle is None:
        return {}
    try:
        found = json.loads((layout.release(bundle) / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def start(world: World, request: Request) -> dict[str, Any]:
    """
    Let the slot run the bundle, and return when it is READY; on failure it is stopped again.
    """
    slot, bundle = request.args.slot(), request.args.digest("bundle")
    timeout_s = request.args.seconds("timeout_s", 300.0)
    request.args.done()
    name = unit(slot)
    with step(world, request, {"slot": slot, "bundle": bundle}) as made:
        began_s, began_at = world.clock.steady_s(), world.clock.wall_s()
        with made.held():
            before = systemd.show(world, [name])[name]
            runs_already = _refuse_unless_free(world, slot, bundle, before)
            if not runs_already:
                world.layout.slot_links.mkdir(parents=True, exist_ok=True)
                link_atomic(world.layout.slot_link(slot), world.layout.release(bundle))
            systemd.enable(world, name)
            if not runs_already:
                # Loading must not slow the slot that serves; traffic.set makes them equal.
                systemd.set_cpu_weight(world, name, STARTING_CPU_WEIGHT)
                systemd.begin_start(world, name)
        ended = _wait_started(world, name, 0 if not runs_already else before.restarts, timeout_s)
        if ended is None or ended.active != "active":
            log = systemd.last_log(world, name, began_at)
            stopped = _stop_again(world, made, name)
            seen = "it was not READY in time" if ended is None else _ending(ended)
            raise HostError(
                "CommandFailed",
                f"{name} did not start with bundle {bundle[:12]}",
                f"{seen}{stopped}; its last log lines: {log}",
                f"journalctl -u {name} on the host; the other slot was not touched",
            )
        made.result = {
            "slot": slot,
            "bundle": bundle,
            "unit": ended.active,
            "restarts": ended.restarts,
            "started": not runs_already,
            "took_s": round(world.clock.steady_s() - began_s, 3),
        }
    return made.result


def stop(world: World, request: Request) -> dict[str, Any]:
    """
    Stop the slot, now and for the next boot; refuses while it may get requests.
    """
    slot = request.args.slot()
    timeout_s = request.args.seconds("timeout_s", 60.0)
    force = request.args.boolean("force", False)
    request.args.done()
    name = unit(slot)
    with step(world, request, {"slot": slot}) as made:
        began_s, began_at = world.clock.steady_s(), world.clock.wall_s()
        with made.held():
            before = systemd.show(world, [name])[name]
            if not force and not before.is_stopped:
                _refuse_if_serving(world, slot)
            systemd.disable(world, name)
            systemd.begin_stop(world, name)
        ended = _wait_stopped(world, name, timeout_s)
        if ended is None:
            raise HostError(
                "CommandFailed",
                f"{name} did not stop within {timeout_s:.0f} s",
                f"its last log lines: {systemd.last_log(world, name, began_at)}",
                f"wait for its requests, or systemctl kill {name} on the host",
            )
        made.result = {
            "slot": slot,
            "unit": ended.active,
            "stopped": not before.is_stopped,
            "took_s": round(world.clock.steady_s() - began_s, 3),
        }
    return made.result


def _refuse_unless_free(world: World, slot: str, bundle: str, before: systemd.Unit) -> bool:
    """
    Return whether the slot runs *bundle* already.
    """
    if not world.layout.release(bundle).is_dir():
        raise HostError(
            "PreconditionError",
            f"bundle {bundle[:12]} is not staged",
            f"{world.layout.release(bundle)} is not there",
            "stage it first: stage.commit",
        )
    if before.load == "not-found":
        raise HostError(
            "PreconditionError",
            f"systemd knows no {before.name}",
            "LoadState=not-found",
            "inv provision",
        )
    linked = linked_bundle(world.layout, slot)
    if before.runs and linked != bundle:
        raise HostError(
            "PreconditionError",
            f"{slot} is taken",
            f"it runs bundle {(linked or 'none')[:12]} ({before.active})",
            f"stop it first: slot.stop, slot {slot}",
        )
    return before.runs


def _refuse_if_serving(world: World, slot: str) -> None:
    fix = 'take its requests away first: traffic.set, traffic.drain; or "force": true'
    try:
        server = Haproxy(world.layout.haproxy_socket).servers()[slot]
    except HostError as error:
        raise HostError(
            "PreconditionError",
            f"nobody knows whether {slot} gets requests",
            error.why,
            fix,
        ) from None
    if server.weight:
        why = f"its weight is {server.weight}, HAProxy says {server.status}"
        raise HostError("PreconditionError", f"{slot} takes requests", why, fix)


def _wait_started(world: World, name: str, restarts: int, timeout_s: float) -> systemd.Unit | None:
    """
    Return the unit once it is READY or has failed; None when the time is over.

    A unit that systemd starts again after a crash has failed: its next try proves nothing.
    """
    began_s = world.clock.steady_s()

    def ended() -> systemd.Unit | None:
        seen = systemd.show(world, [name])[name]
        if seen.sub == "auto-restart" or seen.restarts > restarts or seen.active == "failed":
            return seen._replace(active="failed")
        idle = seen.active == "inactive" and not seen.has_job
        is_late = world.clock.steady_s() - began_s > _GRACE_S
        return seen if seen.active == "active" or (idle and is_late) else None

    return world.wait(ended, timeout_s, _POLL_S)


def _wait_stopped(world: World, name: str, timeout_s: float) -> systemd.Unit | None:
    def ended() -> systemd.Unit | None:
        seen = systemd.show(world, [name])[name]
        return seen if seen.is_stopped and not seen.has_job else None

    return world.wait(ended, timeout_s, _POLL_S)


def _stop_again(world: World, made: Step, name: str) -> str:
    with made.held():
        systemd.disable(world, name)
        systemd.begin_stop(world, name)
    if _wait_stopped(world, name, _STOP_AFTER_FAILURE_S) is None:
        return ", and it has not stopped yet"
    return ", and was stopped"


def _ending(seen: systemd.Unit) -> str:
    if seen.active == "inactive":
        return "systemd did not start it (a condition of the unit failed)"
    if seen.exit_status:
        return f"it ended: {seen.result}, status {seen.exit_status}"
    return f"it ended: {seen.result or seen.sub}"
