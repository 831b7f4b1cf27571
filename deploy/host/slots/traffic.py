"""
Who gets requests: weights, drain, and the file that keeps both over a restart.
"""

from __future__ import annotations

from typing import Any

from deploy.host.files import write_atomic
from deploy.host.journaled import journaled
from deploy.host.layout import SLOTS, unit
from deploy.host.rpc import Args, HostError, Request
from deploy.host.slots import systemd
from deploy.host.slots.haproxy import DRAIN, MAINT, READY, Haproxy, Server
from deploy.host.slots.slot import SERVING_CPU_WEIGHT
from deploy.host.system import System

UP_TIMEOUT_S = 10.0
_POLL_S = 0.05


def set_weights(system: System, request: Request) -> dict[str, Any]:
    """
    Give slots their weights; whoever gets requests is UP before another gets fewer.

    A slot that is not named keeps its weight.  One of weight 0 drains, unless it is in maint.
    """
    given = parse_weights(request.args)
    force = request.args.boolean("force", False)
    request.args.done()
    proxy = Haproxy(system.layout.haproxy_socket)
    with journaled(system, request, {"weights": given}) as op:
        with op.locked():
            before = proxy.servers()
            weights = {slot: given.get(slot, before[slot].weight) for slot in SLOTS}
            if not force:
                _refuse_silence(weights)
            waking = [s for s in given if weights[s] and before[s].weight == 0]
            for slot in waking:
                systemd.set_cpu_weight(system, unit(slot), SERVING_CPU_WEIGHT)
                # At weight 0 it is checked and gets nothing.
                proxy.set_weight(slot, 0)
                proxy.set_admin(slot, READY)
        late = [] if force else _wait_up(system, proxy, [s for s in SLOTS if weights[s]])
        if late:
            with op.locked():
                for slot in waking:
                    if before[slot].admin != READY:
                        proxy.set_admin(slot, before[slot].admin)
                _save(system, proxy)
            raise HostError(
                "CommandFailed",
                f"{late[0].name} is not UP: the weights stay as they were",
                f"HAProxy says {late[0].status} after {UP_TIMEOUT_S:.0f} s of checks",
                f"journalctl -u slipway-runtime@{late[0].name} on the host",
            )
        with op.locked():
            # Raised before lowered: at no time is the sum less than before or after.
            for slot in sorted(given, key=lambda s: weights[s] < before[s].weight):
                _apply(proxy, slot, weights[slot], before[slot])
            after = proxy.servers()
            _save(system, proxy)
        got = {slot: after[slot].weight for slot in SLOTS}
        if got != weights:
            raise HostError(
                "CommandFailed",
                "HAProxy has other weights than it was given",
                f"asked for {weights}, read back {got}",
                "inv status",
            )
        op.result = {"weights": got, "haproxy": {s: after[s].status for s in SLOTS}}
    return op.result


def drain(system: System, request: Request) -> dict[str, Any]:
    """
    Wait until no request of the slot is in flight, then put it into maint.

    When the time is over first, it stays in drain: new requests go elsewhere, and none is cut.
    """
    slot = request.args.slot()
    timeout_s = request.args.seconds("timeout_s", 60.0)
    request.args.done()
    proxy = Haproxy(system.layout.haproxy_socket)
    with journaled(system, request, {"slot": slot}) as op:
        began_s = system.clock.steady_s()
        with op.locked():
            _refuse_if_serving(proxy.servers()[slot])
            if proxy.servers()[slot].admin == READY:
                proxy.set_admin(slot, DRAIN)

        def is_empty() -> bool | None:
            return True if proxy.servers()[slot].sessions == 0 else None

        system.poll_until(is_empty, timeout_s, _POLL_S)
        with op.locked():
            seen = proxy.servers()[slot]
            _refuse_if_serving(seen)
            if seen.sessions == 0:
                proxy.set_admin(slot, MAINT)
            _save(system, proxy)
        op.result = {
            "waited_s": round(system.clock.steady_s() - began_s, 3),
            "left": seen.sessions,
            "maint": seen.sessions == 0,
        }
    return op.result


def parse_weights(args: Args) -> dict[str, int]:
    """
    Return the weights that are given, each 0 to 100; one at least.
    """
    found = args.mapping("weights")
    given = Args("traffic.set", found)
    weights = {slot: given.whole(slot, 0, 100) for slot in SLOTS if slot in found or not found}
    given.done()
    return weights


def _refuse_silence(weights: dict[str, int]) -> None:
    if not any(weights.values()):
        raise HostError(
            "PreconditionError",
            "no slot would get requests",
            f"weights would be {weights}",
            'say "force": true if the service is to stop',
        )


def _wait_up(system: System, proxy: Haproxy, wanted: list[str]) -> list[Server]:
    """
    Return the servers of *wanted* that are not UP when the time is over.
    """

    def all_up() -> bool | None:
        servers = proxy.servers()
        return True if all(servers[slot].is_up for slot in wanted) else None

    if system.poll_until(all_up, UP_TIMEOUT_S, _POLL_S):
        return []
    servers = proxy.servers()
    return [servers[slot] for slot in wanted if not servers[slot].is_up]


def _apply(proxy: Haproxy, slot: str, weight: int, before: Server) -> None:
    proxy.set_weight(slot, weight)
    if weight:
        proxy.set_admin(slot, READY)
    elif before.admin != MAINT:
        proxy.set_admin(slot, DRAIN)


def _refuse_if_serving(server: Server) -> None:
    if server.weight:
        raise HostError(
            "PreconditionError",
            f"{server.name} takes requests",
            f"its weight is {server.weight}: it would never be empty",
            f"set its weight to 0 first: traffic.set, with {server.name} at 0",
        )


def _save(system: System, proxy: Haproxy) -> None:
    # HAProxy reads it before it drops its privileges.
    write_atomic(system.layout.haproxy_state, proxy.state().encode(), 0o644)
