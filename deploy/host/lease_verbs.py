"""
The verbs of the lease.
"""

from __future__ import annotations

from deploy.host import reserve
from deploy.host.deadman import pending
from deploy.host.files import locked
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.lease import Leases
from deploy.host.protocol import (
    Call,
    ErrorKind,
    HostError,
    LeaseAcquire,
    LeaseGranted,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
)
from deploy.host.system import System


def acquire(system: System, call: Call, request: LeaseAcquire) -> LeaseGranted:
    """
    Take the lease of this host for the release of *call*, with a new highest number.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        leases = Leases(system)
        if request.needs_settled and leases.in_force() is None:
            _refuse_pending(system)
        lease = leases.take(
            request.owner, call.release, request.ttl_s, request.epoch, steal=request.steal
        )
        data = {"owner": request.owner, "ttl_s": request.ttl_s, "epoch": lease.epoch}
        append_event(system, call._replace(fence=lease.fence), request.VERB, data)
        reserve.lay_again(system)
    return LeaseGranted(lease.fence, lease.expires_at)


def renew(system: System, call: Call, request: LeaseRenew) -> LeaseGranted:
    """
    Extend the caller's lease; not journaled, because it comes every few seconds.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        leases = Leases(system)
        lease = leases.renew(leases.check(call.fence), request.ttl_s)
    return LeaseGranted(lease.fence, lease.expires_at)


def release(system: System, call: Call, request: LeaseRelease) -> LeaseReleased:
    """
    End the caller's lease; that of another caller stays in force.
    """
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        released = Leases(system).release(call.fence)
        if released:
            append_event(system, call, request.VERB, {})
    return LeaseReleased(released)


def _refuse_pending(system: System) -> None:
    pending.repair(system)
    way = pending.read(system)
    if way is None or pending.is_stuck(system, way):
        return  # what keeps it from going back may be what the caller mends
    raise HostError(
        ErrorKind.PRECONDITION,
        f"release {way.release} is not confirmed",
        "the host is going back by itself, and a lease would stop that",
        f"wait until it has gone back: inv status; after {pending.STUCK_S:.0f} s it may be "
        "provisioned all the same",
    )
