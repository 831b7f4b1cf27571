"""
Sets weights, drains slots, and writes the state file that keeps both over a restart.
"""

from __future__ import annotations

from deploy.host.deadman import pending
from deploy.host.journaled import journaled
from deploy.host.layout import SLOTS, unit
from deploy.host.protocol import (
    Call,
    Drained,
    ErrorKind,
    HostError,
    TrafficDrain,
    TrafficSet,
    TrafficWeights,
)
from deploy.host.reserve import with_room, write_spare
from deploy.host.slots import systemd
from deploy.host.slots.haproxy import DRAIN, MAINT, READY, Haproxy, Server
from deploy.host.slots.runtime_api import READYZ, readiness
from deploy.host.slots.slot import SERVING_CPU_WEIGHT
from deploy.host.system import System

UP_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 5.0  # as long as HAProxy gives a slot before it counts as late
_POLL_S = 0.05


def set_weights(system: System, call: Call, request: TrafficSet) -> TrafficWeights:
    """
    Set weights of slots; a slot that gains traffic is UP before another loses it.

    The slot of a pending change also has to answer its readiness check at that moment: HAProxy
    takes a second to notice that a slot has ended.  No other slot has to, so that this prevents no
    way back.

    A slot that is not named keeps its weight.  One of weight 0 drains, unless it is in maint.
    """
    given, force = request.weights, request.force
    if not given:
        raise HostError(
            ErrorKind.USAGE,
            f"{request.VERB}: weights is empty",
            "it names no slot",
            "name one slot at least, with its weight from 0 to 100",
        )
    proxy = Haproxy(system)
    with journaled(system, call, request.VERB, {"weights": given}) as op:
        with op.locked():
            before = proxy.servers()
            weights = {slot: given.get(slot, before[slot].weight) for slot in SLOTS}
            if not force:
                _refuse_silence(weights)
            waking = [s for s in given if weights[s] and before[s].weight == 0]
            for slot in waking:
                systemd.set_cpu_weight(system, unit(slot), SERVING_CPU_WEIGHT)
                # At weight 0 HAProxy checks it and sends it nothing.
                proxy.set_weight(slot, 0)
                proxy.set_admin(slot, READY)
        refusal = None if force else _why_not(system, proxy, _gaining(before, weights))
        if refusal is not None:
            with op.locked():
                for slot in waking:
                    if before[slot].admin != READY:
                        proxy.set_admin(slot, before[slot].admin)
                save_state(system, proxy)
            raise refusal
        with op.locked():
            # Weights rise before others fall, so that the sum never drops below both ends.
            for slot in sorted(given, key=lambda s: weights[s] < before[s].weight):
                _apply(proxy, slot, weights[slot], before[slot])
            after = proxy.servers()
            save_state(system, proxy)
        got = {slot: after[slot].weight for slot in SLOTS}
        if got != weights:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                "HAProxy has other weights than were set",
                f"set {weights}, read back {got}",
                "inv status",
            )
        result = TrafficWeights(weights=got, haproxy={s: after[s].status for s in SLOTS})
        op.result = result
    return result


def drain(system: System, call: Call, request: TrafficDrain) -> Drained:
    """
    Wait until no request of the slot is in flight, then put it into maint.

    After the timeout it stays in drain: new requests go to the other slot, and none is cut.
    """
    slot = request.slot
    proxy = Haproxy(system)
    with journaled(system, call, request.VERB, {"slot": slot}) as op:
        began_s = system.steady_s()
        with op.locked():
            _refuse_if_serving(proxy.servers()[slot])
            if proxy.servers()[slot].admin == READY:
                proxy.set_admin(slot, DRAIN)

        def is_empty() -> bool | None:
            return True if proxy.servers()[slot].sessions == 0 else None

        system.poll_until(is_empty, request.timeout_s, _POLL_S)
        with op.locked():
            server = proxy.servers()[slot]
            _refuse_if_serving(server)
            if server.sessions == 0:
                proxy.set_admin(slot, MAINT)
            save_state(system, proxy)
        result = Drained(
            waited_s=round(system.steady_s() - began_s, 3),
            left=server.sessions,
            maint=server.sessions == 0,
        )
        op.result = result
    return result


def _refuse_silence(weights: dict[str, int]) -> None:
    if not any(weights.values()):
        raise HostError(
            ErrorKind.PRECONDITION,
            "no slot would take requests",
            f"the weights would be {weights}",
            'send "force": true to stop the service',
        )


def _gaining(before: dict[str, Server], weights: dict[str, int]) -> list[str]:
    """
    Return the slots whose share of the traffic grows.

    The others keep what they have or lose some: whether they are UP prevents nothing.
    """
    old, new = sum(before[slot].weight for slot in SLOTS), sum(weights.values())
    # The shares before and after, as fractions with a common denominator.
    return [s for s in SLOTS if weights[s] * max(old, 1) > before[s].weight * new]


def _why_not(system: System, proxy: Haproxy, gaining: list[str]) -> HostError | None:
    """
    Return why the slots of *gaining* cannot take more traffic now; None if they can.
    """
    late = _wait_up(system, proxy, gaining)
    if late:
        return HostError(
            ErrorKind.COMMAND_FAILED,
            f"{late[0].name} is not UP: the weights stay as they were",
            f"HAProxy reports {late[0].status} after {UP_TIMEOUT_S:.0f} s of checks",
            f"journalctl -u {unit(late[0].name)} on the host",
        )
    change = pending.read(system)
    if change is None or change.to_slot not in gaining:
        return None
    answer = readiness(system, change.to_slot, READY_TIMEOUT_S)
    if answer.status == 200:
        return None
    said = f"{READYZ} answered {answer.status}" if answer.status else f"{READYZ}: {answer.body}"
    return HostError(
        ErrorKind.COMMAND_FAILED,
        f"{change.to_slot} is not ready any more: the weights stay as they were",
        f"{said}; release {change.release} is not confirmed, so it gets no more traffic",
        f"journalctl -u {unit(change.to_slot)} on the host",
    )


def _wait_up(system: System, proxy: Haproxy, wanted: list[str]) -> list[Server]:
    """
    Return the servers of *wanted* that are not UP after the timeout.
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
            ErrorKind.PRECONDITION,
            f"slot {server.name} takes requests",
            f"its weight is {server.weight}, so it would never be empty",
            f"set its weight to 0 first: traffic.set, with {server.name} at 0",
        )


def save_state(system: System, proxy: Haproxy) -> None:
    """
    Keep the weights and states of HAProxy for its next start; the caller holds the host's lock.
    """
    # HAProxy reads the file before it drops its privileges.
    state = proxy.state().encode()
    with_room(system, lambda: write_spare(system.layout.haproxy_state, state, 0o644))
