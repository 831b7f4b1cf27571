"""
Holds the leases of an operator: takes, renews and releases them, and reports a lost one.
"""

import threading
from collections.abc import Iterable, Mapping

from deploy.errors import CommandFailed, DeployError, LeaseLost
from deploy.host.protocol import LeaseAcquire, LeaseRelease, LeaseRenew
from deploy.release.clock import Clock, Timer
from deploy.release.parallel import on_each, unexpected
from deploy.transport.client import HostClient

# In shares of the time to live.  A renewal starts after 1/3 and may take 1/5.  Three of them, one
# after the other, end while the lease is still in force.
_PERIOD, _TIMEOUT, _RETRY = 1 / 3, 1 / 5, 1 / 60


class LeaseKeeper:
    """
    Takes leases of hosts, renews them in the background, releases them.

    A lease is lost when the host says so, or when no renewal succeeded for a whole time to live.
    The host's connection is then closed, so that a command in progress fails at once instead of
    at its own deadline, and `check` raises from then on.

    The lease is also the deadline of the host's own way back: when renewals end, the host goes
    back by itself.

    Args:
        ttl_s: Time to live of a lease, in seconds; the longest that a cut or frozen host can
            delay a release.
    """

    def __init__(
        self,
        clients: Mapping[str, HostClient],
        *,
        owner: str,
        release: str,
        ttl_s: float,
        clock: Clock,
    ) -> None:
        self._clients = clients
        self._owner, self._release, self._ttl_s, self._clock = owner, release, ttl_s, clock
        self._timer: Timer | None = None
        self._held: dict[str, int] = {}  # number of each lease that is renewed
        self._renewed_s: dict[str, float] = {}
        self._next_s: dict[str, float] = {}
        self._lost: dict[str, DeployError] = {}
        self._epoch, self._steal = 0, False
        self._lock = threading.Lock()

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    @property
    def held(self) -> frozenset[str]:
        """
        Return the hosts whose lease is in force, as far as is known.
        """
        with self._lock:
            return frozenset(self._held)

    def take_all(
        self,
        hosts: Iterable[str],
        *,
        epoch: int = 0,
        steal: bool = False,
        within_s: float | None = None,
    ) -> dict[str, DeployError]:
        """
        Take the leases of *hosts* for *epoch*, all at once; return the errors by host.

        A host that answers after *within_s* counts as one that does not.
        """
        self._epoch, self._steal = epoch, steal
        for host in hosts:
            self._clients[host].release = self._release
        errors = on_each(hosts, self.take, within_s=within_s)
        with self._lock:
            for host in errors:
                self._held.pop(host, None)
        if self._timer is None:
            self._timer = self._clock.start_timer(self._renew_due, self._ttl_s * _PERIOD)
        return errors

    def take(self, host: str) -> None:
        """
        Take the lease of one host, also of one that was lost, and renew it from now on.

        Raises:
            LeaseHeld: Another owner holds it.
            EpochOld: Another operator has begun since.
            TransportError: The host does not answer.
        """
        client = self._clients[host]
        with self._lock:
            self._held.pop(host, None)
        sent_s = self._clock.monotonic_s()
        granted = client.call(
            LeaseAcquire(
                owner=self._owner, ttl_s=self._ttl_s, epoch=self._epoch, steal=self._steal
            ),
            timeout_s=self._ttl_s,
        )
        if granted.fence <= (client.fence or 0):
            raise CommandFailed(
                f"{host}: no valid lease",
                why=f"the host grants number {granted.fence} after {client.fence}; numbers only "
                "grow",
                fix=f"do not trust {host} before you know who changed its host program",
                host=host,
            )
        client.fence = granted.fence
        with self._lock:
            self._lost.pop(host, None)
            self._held[host] = granted.fence
            self._renewed_s[host] = sent_s
            self._next_s[host] = sent_s + self._ttl_s * _PERIOD

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

    def release_all(self) -> None:
        """
        Release what is held; a lease that cannot be released expires by itself.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held = self.held
        with self._lock:
            self._held.clear()
        on_each(held, self._release_one)
        for client in self._clients.values():
            client.fence = None

    def _release_one(self, host: str) -> None:
        self._clients[host].call(LeaseRelease(), timeout_s=self._ttl_s)

    def _renew_due(self) -> float | None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            due = [host for host in self._held if self._next_s[host] <= now_s]
        on_each(due, self._renew)
        with self._lock:
            nearest_s = min(
                (self._next_s[host] for host in self._held), default=now_s + self._ttl_s * _PERIOD
            )
        return max(self._ttl_s * _RETRY, nearest_s - self._clock.monotonic_s())

    def _renew(self, host: str) -> None:
        client, fence = self._clients[host], self._held.get(host)
        if fence is None:
            return
        sent_s = self._clock.monotonic_s()
        try:
            client.call(LeaseRenew(ttl_s=self._ttl_s), timeout_s=self._ttl_s * _TIMEOUT)
        except LeaseLost as error:
            self._lose(client, fence, error)
        except Exception as error:  # a defect too: an unnoticed end of renewals loses the lease
            left_s = self._renewed_s[host] + self._ttl_s - self._clock.monotonic_s()
            if left_s <= 0:
                self._lose(client, fence, _known(host, error))
            else:
                self._next_s[host] = self._clock.monotonic_s() + min(self._ttl_s * _RETRY, left_s)
        else:
            self._renewed_s[host] = sent_s
            self._next_s[host] = sent_s + self._ttl_s * _PERIOD

    def _lose(self, client: HostClient, fence: int, error: DeployError) -> None:
        with self._lock:
            if self._held.get(client.host) != fence:
                return  # a newer lease was taken in between
            del self._held[client.host]
            self._lost[client.host] = error
        client.transport.close()


def _known(host: str, error: Exception) -> DeployError:
    return error if isinstance(error, DeployError) else unexpected(host, error)
