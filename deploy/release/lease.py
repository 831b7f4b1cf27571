"""
Holds the leases of a release: takes, renews and releases them, and reports a lost one.
"""

from collections.abc import Iterable

from deploy.errors import CommandFailed, DeployError, LeaseHeld, LeaseLost
from deploy.host.protocol import LeaseAcquire, LeaseRelease, LeaseRenew
from deploy.release.clock import Clock, Timer
from deploy.release.parallel import unexpected
from deploy.transport.client import HostClient

# In shares of the time to live.  A renewal starts after 1/3 and may take 1/5.  Three of them, one
# after the other, end while the lease is still in force.
_PERIOD, _TIMEOUT, _RETRY = 1 / 3, 1 / 5, 1 / 60


class LeaseKeeper:
    """
    Takes the lease of all hosts or of none, renews it in the background, releases it.

    A way back needs not all of them (*needs_all*): a host that does not give its lease is in
    `refused`, and cannot keep the others from going back.

    A lease is lost when the host says so, or when no renewal succeeded for a whole time to live.
    The host's connection is then closed, so that a command in progress fails at once instead of
    at its own deadline, and `check` raises from then on.

    Args:
        ttl_s: Time to live of the lease, in seconds; the longest that a cut or frozen host can
            delay a release.
    """

    def __init__(
        self,
        clients: Iterable[HostClient],
        *,
        owner: str,
        release: str,
        ttl_s: float,
        clock: Clock,
        needs_all: bool = True,
    ) -> None:
        self._needs_all = needs_all
        self.refused: dict[str, DeployError] = {}
        self._clients = sorted(clients, key=lambda client: client.host)
        self._owner, self._release, self._ttl_s, self._clock = owner, release, ttl_s, clock
        self._timers: dict[str, Timer] = {}
        self._renewed_s: dict[str, float] = {}
        self._lost: dict[str, DeployError] = {}

    def __enter__(self) -> "LeaseKeeper":
        """
        Take the leases in the order of the host names: two operators never each hold half.

        Raises:
            LeaseHeld: Another owner holds one, or more than half where not all are needed; those
                already taken are released.
            DeployError: A host did not answer; where not all are needed: no host did.
        """
        try:
            for client in self._clients:
                client.release = self._release
                try:
                    self.take(client)
                except DeployError as error:
                    if self._needs_all:
                        raise
                    self.refused[client.host] = error
            self._refuse_without_leases()
        except BaseException:
            self._release_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release_all()

    def _refuse_without_leases(self) -> None:
        """
        Raise where another owner holds most of the hosts, or no host gave its lease.
        """
        held = [error for error in self.refused.values() if isinstance(error, LeaseHeld)]
        if 2 * len(held) > len(self._clients):
            raise held[0]
        if self.refused and len(self.refused) == len(self._clients):
            raise self.refused[min(self.refused)]

    def take(self, client: HostClient) -> None:
        """
        Take the lease of one host, also of one that was lost, and renew it from now on.

        Raises:
            LeaseHeld: Another owner holds it.
            TransportError: The host does not answer.
        """
        self._stop_renewing(client.host)
        sent_s = self._clock.monotonic_s()
        granted = client.call(
            LeaseAcquire(owner=self._owner, ttl_s=self._ttl_s), timeout_s=self._ttl_s
        )
        if granted.fence <= (client.fence or 0):
            raise CommandFailed(
                f"{client.host}: no valid lease",
                why=f"the host grants number {granted.fence} after {client.fence}; numbers only "
                "grow",
                fix=f"do not trust {client.host} before you know who changed its host program",
                host=client.host,
            )
        client.fence = granted.fence
        self._lost.pop(client.host, None)
        self._renewed_s[client.host] = sent_s
        self._timers[client.host] = self._clock.start_timer(
            lambda: self._renew(client, granted.fence), self._ttl_s * _PERIOD
        )

    def check(self, host: str) -> None:
        """
        Refuse to go on with a host whose lease is lost.

        Raises:
            LeaseLost: It was lost since it was taken.
        """
        cause = self._lost.get(host)
        if cause is not None:
            raise LeaseLost(
                f"{host}: the lease was lost",
                why=f"{cause.what}: {cause.why}",
                fix="inv status shows the host when it answers again",
                host=host,
            )

    def is_lost(self, host: str) -> bool:
        return host in self._lost

    def _renew(self, client: HostClient, fence: int) -> float | None:
        sent_s = self._clock.monotonic_s()
        try:
            client.call(LeaseRenew(ttl_s=self._ttl_s), timeout_s=self._ttl_s * _TIMEOUT)
        except LeaseLost as error:
            if client.fence == fence:  # otherwise a newer lease was taken in between
                self._lose(client, error)
            return None
        except Exception as error:  # a defect too: an unnoticed end of renewals loses the lease
            if client.fence != fence:
                return None
            left_s = self._renewed_s[client.host] + self._ttl_s - self._clock.monotonic_s()
            if left_s <= 0:
                self._lose(client, _known(client, error))
                return None
            return min(self._ttl_s * _RETRY, left_s)
        self._renewed_s[client.host] = sent_s
        return self._ttl_s * _PERIOD

    def _lose(self, client: HostClient, error: DeployError) -> None:
        self._lost[client.host] = error
        client.transport.close()

    def _stop_renewing(self, host: str) -> None:
        timer = self._timers.pop(host, None)
        if timer is not None:
            timer.cancel()

    def _release_all(self) -> None:
        for client in self._clients:
            is_renewed = client.host in self._timers
            self._stop_renewing(client.host)
            if is_renewed and client.host not in self._lost:
                try:
                    client.call(LeaseRelease(), timeout_s=self._ttl_s)
                except Exception as error:
                    # It expires by itself within its time to live.
                    self._lost[client.host] = _known(client, error)
            client.fence = None


def _known(client: HostClient, error: Exception) -> DeployError:
    return error if isinstance(error, DeployError) else unexpected(client.host, error)
