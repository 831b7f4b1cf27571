"""
Reboots the host.
"""

from __future__ import annotations

from deploy.host.deadman import pending
from deploy.host.files import locked
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.lease import Leases
from deploy.host.protocol import Call, ErrorKind, HostError, Reboot, RebootBegun
from deploy.host.reboot_reasons import reasons
from deploy.host.slots import door
from deploy.host.system import System
from deploy.host.text import one_line

_TIMEOUT_S = 20.0


def run(system: System, call: Call, request: Reboot) -> RebootBegun:
    """
    Begin the reboot; the answer may be lost with the connection.

    Raises:
        HostError: The door is open, a change waits to be confirmed, or systemd refuses.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        if system.boot_id() != request.boot_id:
            return RebootBegun(is_begun=False)
        pending.repair(system)
        way = pending.read(system)
        if way is not None:
            raise _refused(f"release {way.release} is not confirmed")
        if door.is_open(system):
            raise _refused("its door is open: balancers may send requests")
        why = {reason.cause: reason.observed for reason in reasons(system)}
        append_event(system, call, request.VERB, {"reasons": why})
        done = system.run(["systemctl", "reboot"], timeout_s=_TIMEOUT_S)
    if done.returncode != 0:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "systemctl reboot failed",
            f"exit status {done.returncode}: {one_line(done.stderr) or 'no output'}",
            "systemctl list-jobs on the host",
        )
    return RebootBegun(is_begun=True)


def _refused(why: str) -> HostError:
    return HostError(ErrorKind.PRECONDITION, "the host must not be rebooted now", why, "inv status")
