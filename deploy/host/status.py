"""
What is true of this host now; answers on a host where anything may be missing.
"""

from __future__ import annotations

from typing import Any

from deploy.host.disk import free_bytes
from deploy.host.journal import Journal, replay
from deploy.host.layout import SLOTS, unit
from deploy.host.lease import Leases
from deploy.host.rpc import Request
from deploy.host.slots import unix_http
from deploy.host.slots.measure import servers_or_none, units_or_none
from deploy.host.slots.slot import linked_bundle, manifest_of
from deploy.host.system import System, utc


def run(system: System, request: Request) -> dict[str, Any]:
    """
    Return slots, lease, good releases and what was left unfinished; changes nothing.
    """
    request.args.done()
    layout = system.layout
    entries, damaged = Journal(system).read()
    found = replay(entries)
    held = Leases(system).in_force()
    servers, units = servers_or_none(layout), units_or_none(system)
    slots = {}
    for slot in SLOTS:
        bundle = linked_bundle(layout, slot)
        manifest = manifest_of(layout, bundle)
        seen, server = units.get(unit(slot)), servers.get(slot)
        slots[slot] = {
            "bundle": bundle,
            "version": manifest.get("version"),
            "model": manifest.get("model_name"),
            "unit": seen.active if seen else "unknown",
            "enabled": seen.is_enabled if seen else None,
            "restarts": seen.restarts if seen else 0,
            "weight": server.weight if server else None,
            "haproxy": server.status if server else None,
            "admin": server.admin if server else None,
            "sessions": server.sessions if server else None,
            "ready": unix_http.is_ready(layout, slot),
        }
    return {
        "boot_id": system.boot_id(),
        "at": utc(system.clock.wall_s()),
        "lease": held.as_json() if held else None,
        "slots": slots,
        "good": found.good,
        "unfinished": found.unfinished,
        "paused": found.paused,
        "journal": {"seq": found.seq, "damaged": damaged},
        "disk_free": {
            "opt": free_bytes(layout.opt),
            "state": free_bytes(layout.state),
        },
    }
