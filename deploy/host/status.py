"""
Present state of a host; works on a host where any part is missing.
"""

from __future__ import annotations

import base64

from deploy.host import api_keys, desired
from deploy.host.deadman import pending, self_test
from deploy.host.disk import free_bytes
from deploy.host.good import staged, startable
from deploy.host.journal import Journal
from deploy.host.layout import SLOTS, unit
from deploy.host.lease import Leases
from deploy.host.protocol import Call, HostError, HostStatus, SlotStatus, Status
from deploy.host.replay import replay
from deploy.host.reserve import is_whole
from deploy.host.slots import runtime_api, systemd
from deploy.host.slots.haproxy import Server
from deploy.host.slots.measure import servers_or_none, units_or_none
from deploy.host.slots.slot import linked_bundle, version_of
from deploy.host.system import System

_HANDSHAKE_S = 0.5  # to connect, and again for the handshake: a way back asks hosts for 2 s


def run(system: System, _call: Call, _request: Status) -> HostStatus:
    """
    Return slots, lease, good releases and unfinished work; changes nothing.
    """
    layout = system.layout
    records, damaged = Journal(system).read()
    replayed = replay(records)
    servers, units = servers_or_none(system), units_or_none(system)
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
        certificate=_certificate(system),
        keys=keys.stamp,
        keys_damage=keys.damage,
    )


def _certificate(system: System) -> str | None:
    try:
        der = system.served_certificate(timeout_s=_HANDSHAKE_S)
    except OSError:
        return ""
    except HostError:
        return None  # never provisioned
    return None if der is None else base64.b64encode(der).decode()


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
