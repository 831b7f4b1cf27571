"""
The way back of one host: state-based, repeated until it succeeds or its time is over.
"""

from collections.abc import Callable
from typing import TypeVar

from deploy.errors import DeployError, LeaseHeld, LeaseLost, TransportError
from deploy.host.protocol import HostStatus, Status
from deploy.release import host_commands
from deploy.release.clock import Clock
from deploy.release.lease import LeaseKeeper
from deploy.release.observe import observed
from deploy.release.plan import HostPlan
from deploy.transport.client import HostClient

_PAUSE_S = 1.0  # between two attempts
_STATUS_S = 15.0

Result = TypeVar("Result")


def take_back(
    client: HostClient,
    host: HostPlan,
    bundle: str,
    keeper: LeaseKeeper,
    limits: host_commands.Limits,
    clock: Clock,
    patience_s: float,
    *,
    after_loss: bool,
) -> None:
    """
    Give all traffic to the slot that served before, and stop the slot of the new release.

    Reads the host first and does only what is missing, so that it may run again after any part
    of it; nothing is called on a host that the release has not changed.  A slot whose unit failed
    is stopped too: it would start again at the next boot.

    Args:
        bundle: Digest of the new release's bundle.
        patience_s: Attempts begin for so long.
        after_loss: A command may still run on the host, or begin later, because its connection
            was lost.  A new lease is taken first: the host then refuses that command.

    Raises:
        DeployError: The error of the last attempt.
    """

    def attempt() -> None:
        status = client.call(Status(), timeout_s=_STATUS_S)
        if not _serves_as_before(status, host):
            host_commands.move_traffic(
                client, host.to_slot, host.from_slot, is_ready=host.from_ready
            )
        slot = observed(host.host, status).slot(host.to_slot)
        if slot.bundle == bundle or not slot.is_stopped:
            host_commands.stop(client, host.to_slot, limits)

    needs_lease = after_loss or keeper.is_lost(client.host)
    _persist(attempt, client, keeper, clock, patience_s, needs_lease=needs_lease)


def hold(
    client: HostClient, host: HostPlan, keeper: LeaseKeeper, clock: Clock, patience_s: float
) -> dict[str, int]:
    """
    Give all traffic to the slot that served before, and keep the other one warm.

    Returns:
        Weights of the slots in percent, as read back.
    """
    assert host.from_slot is not None
    weights = {host.from_slot: 100, host.to_slot: 0}
    return _persist(
        lambda: host_commands.shift(client, weights, force=not host.from_ready),
        client,
        keeper,
        clock,
        patience_s,
        needs_lease=keeper.is_lost(client.host),
    )


def _serves_as_before(status: HostStatus, host: HostPlan) -> bool:
    if status.slots[host.to_slot].weight != 0:
        return False
    return host.from_slot is None or status.slots[host.from_slot].weight == 100


def _persist(
    attempt: Callable[[], Result],
    client: HostClient,
    keeper: LeaseKeeper,
    clock: Clock,
    patience_s: float,
    *,
    needs_lease: bool,
) -> Result:
    """
    Run *attempt*, with the lease taken again where it is lost, until it succeeds.
    """
    until_s = clock.monotonic_s() + patience_s
    while True:
        try:
            if needs_lease:
                keeper.take(client)
            return attempt()
        except LeaseHeld:
            raise  # another operator has taken the host over
        except DeployError as error:
            if clock.monotonic_s() >= until_s:
                raise
            # After a lost answer the lease may be lost too; taking one's own again is harmless.
            needs_lease = isinstance(error, LeaseLost | TransportError)
        clock.sleep(_PAUSE_S)
