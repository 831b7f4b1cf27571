"""
Present state of a host; works on a host where any part is missing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from deploy.host import api_keys, certificate, desired
from deploy.host.deadman import pending, self_test
from deploy.host.disk import free_bytes
from deploy.host.good import staged, startable
from deploy.host.journal import Journal
from deploy.host.layout import PACKAGE_UNITS, SLOTS, unit
from deploy.host.lease import Leases
from deploy.host.protocol import Call, HostError, HostStatus, SlotStatus, Status
from deploy.host.reboot_reasons import reasons
from deploy.host.replay import replay
from deploy.host.reserve import is_whole
from deploy.host.slots import door, runtime_api, systemd
from deploy.host.slots.haproxy import Server
from deploy.host.slots.measure import servers_or_none, units_or_none
from deploy.host.slots.slot import linked_bundle, version_of
from deploy.host.system import System

_HANDSHAKE_S = 0.3  # a way back waits for the whole status for 2 s, also under a flood of clients


def run(system: System, _call: Call, _request: Status) -> HostStatus:
    """
    Return slots, lease, good releases and unfinished work; changes nothing.
    """
    layout = system.layout
    records, damaged = Journal(system).read()
    replayed = replay(records)
    servers, units = servers_or_none(system), units_or_none(system, PACKAGE_UNITS)
    keys = api_keys.stored(layout)
    return HostStatus(
        boot_id=system.boot_id(),
        lease=Leases(system).status(),
        slots={
            slot: _slot(system, slot, servers.get(slot), units.get(unit(slot))) for slot in SLOTS
        },
        good=startable(layout, replayed.good),
        unfinished=replayed.unfinished,
        paused=replayed.paused,
        journal_damaged=damaged,
        free_opt_bytes=free_bytes(system, layout.opt),
        free_state_bytes=free_bytes(system, layout.state),
        is_reserve_whole=is_whole(layout),
        epoch=Leases(system).newest_epoch(replayed),
        state=desired.stored(layout).stamp,
        staged=staged(layout),
        pending=pending.status(system),
        went_back=pending.went_back(system),
        is_deadman_tested=self_test.is_tested(system),
        keys=keys.stamp,
        keys_damage=keys.damage,
        is_open=door.is_open(system),
        reboot_reasons=reasons(system),
        package_units=_package_units(units),
        is_pending_damaged=pending.is_damaged(system),
        is_pending_aside=pending.is_put_aside(system),
        **_certificate(system),  # last: it is the slowest where many clients connect
    )


def _package_units(units: Mapping[str, systemd.Unit]) -> tuple[str, ...] | None:
    """
    Return the units that change packages now; None where systemd does not say it.
    """
    if not all(name in units for name in PACKAGE_UNITS):
        return None
    return tuple(name for name in PACKAGE_UNITS if not units[name].is_stopped)


def _certificate(system: System) -> dict[str, Any]:
    """
    Return the fields about the certificate of the public port.
    """
    try:
        der = system.served_certificate(timeout_s=_HANDSHAKE_S)
    except OSError:
        return {"certificate": ""}
    except HostError:
        return {}  # never provisioned
    if der is None:
        return {}
    is_kept = certificate.is_kept(system, der)
    return {"certificate": base64.b64encode(der).decode(), "is_certificate_kept": is_kept}


def _slot(
    system: System, slot: str, server: Server | None, slot_unit: systemd.Unit | None
) -> SlotStatus:
    bundle = linked_bundle(system.layout, slot)
    return SlotStatus(
        bundle=bundle,
        version=version_of(system.layout, bundle),
        unit=slot_unit.active if slot_unit else "unknown",
        weight=server.weight if server else None,
        haproxy=server.status if server else None,
        sessions=server.sessions if server else None,
        ready=runtime_api.is_ready(system, slot),
        is_masked=slot_unit is not None and slot_unit.is_masked,
    )
