"""
The door of the host, for balancers in front of it: a server of HAProxy that is never connected to.

In maint it is closed.  Its state is kept where the weights of the slots are kept.
"""

from __future__ import annotations

from deploy.host.journaled import journaled
from deploy.host.layout import DOOR_BACKEND, DOOR_SERVER
from deploy.host.protocol import Call, DoorSet, DoorState, ErrorKind, HostError
from deploy.host.slots.haproxy import MAINT, READY, Haproxy
from deploy.host.slots.traffic import save_state
from deploy.host.system import System


def set_door(system: System, call: Call, request: DoorSet) -> DoorState:
    """
    Open or close the door, and keep that for the next start of HAProxy.
    """
    proxy = Haproxy(system)
    with journaled(system, call, request.VERB, {"is_open": request.is_open}) as op:
        with op.locked():
            proxy.set_admin(DOOR_SERVER, READY if request.is_open else MAINT, DOOR_BACKEND)
            save_state(system, proxy)
        if is_open(system) is not request.is_open:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                "HAProxy has the door otherwise than it was set",
                f"set {'open' if request.is_open else 'closed'}, and read back otherwise",
                "inv status",
            )
        result = DoorState(request.is_open)
        op.result = result
    return result


def is_open(system: System) -> bool | None:
    """
    Return whether the door is open; None: HAProxy does not answer, or has no door.
    """
    try:
        servers = Haproxy(system).states(DOOR_BACKEND)
    except HostError:
        return None
    state = servers.get(DOOR_SERVER)
    return None if state is None else state != MAINT
