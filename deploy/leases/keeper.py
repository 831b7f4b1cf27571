"""
Holds the leases of an operator: takes, renews and releases them, and reports a lost one.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Protocol, TypeVar

from deploy.clock import Clock, Timer
from deploy.errors import CommandFailed, DeployError, LeaseLost
from deploy.host.protocol import LeaseAcquire, LeaseRelease, LeaseRenew, Request
from deploy.transport.base import Transport
from deploy.transport.parallel import WORKERS, on_each, unexpected

# In shares of the time to live.  A renewal starts after 1/3 and may take 1/5.  Each one after it
# may take twice as long as the one before, up to _MARGIN before the lease ends on the host.
_PERIOD, _TIMEOUT, _RETRY, _MARGIN = 1 / 3, 1 / 5, 1 / 60, 1 / 20
_ROUND = 1 / 6  # all renewals that are due have begun within this, also where all hang


ResultT = TypeVar("ResultT")


class LeaseClient(Protocol):
    """
    Calls the verbs of the lease on one host.

    Attributes:
        fence: Number of the lease that is held there; None: none is.
        release: What the lease is for.
    """

    fence: int | None
    release: str | None

    @property
    def host(self) -> str: ...

    @property
    def transport(self) -> Transport: ...

    def call(self, request: Request[ResultT], *, timeout_s: float = ...) -> ResultT: ...


class LeaseKeeper:
    """
    Takes leases of hosts, renews them in the background, releases them.

    A lease is lost when the host says so, or when none of its renewals was answered until just
    before its end.  One slow or failed renewal loses nothing: it is tried again, with more time.
    The host's connection is then closed, so that a command in progress fails at once instead of
    at its own deadline, and `check` raises from then on.

    The lease is also the deadline of the host's own way back: when renewals end, the host goes
    back by itself.

    Args:
        ttl_s: Time to live of a lease, in seconds; the longest that a cut or frozen host can
            delay a release.
        needs_settled: As in lease.acquire.
        on_loss: Called with each loss, in the thread of the renewals.
    """

    def __init__(
        self,
        clients: Mapping[str, LeaseClient],
        *,
        owner: str,
        release: str,
        ttl_s: float,
        clock: Clock,
        needs_settled: bool = False,
        on_loss: Callable[[LeaseLost], None] = lambda _: None,
    ) -> None:
        self._clients = clients
        self._owner, self._release, self._ttl_s, self._clock = owner, release, ttl_s, clock
        self._needs_settled, self._on_loss = needs_settled, on_loss
        self._timer: Timer | None = None
        self._held: dict[str, int] = {}  # number of each lease that is renewed
        self._renewed_s: dict[str, float] = {}
        self._next_s: dict[str, float] = {}
        self._timeout_s: dict[str, float] = {}  # of the next renewal
        self._lost: dict[str, LeaseLost] = {}
        self._attempts: dict[str, object] = {}  # the newest `take` of each host; given up: none
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

        A host that answers after *within_s* counts as one that does not.  What it grants then is
        not used, and expires.
        """
        self._epoch, self._steal = epoch, steal
        for host in hosts:
            self._clients[host].release = self._release
        errors = on_each(hosts, self.take, within_s=within_s)
        with self._lock:
            for host in errors:
                self._held.pop(host, None)
                self._attempts.pop(host, None)
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
        client, attempt = self._clients[host], object()
        with self._lock:
            self._held.pop(host, None)
            self._attempts[host] = attempt
        sent_s = self._clock.monotonic_s()
        granted = client.call(
            LeaseAcquire(
                owner=self._owner,
                ttl_s=self._ttl_s,
                epoch=self._epoch,
                steal=self._steal,
                needs_settled=self._needs_settled,
            ),
            timeout_s=self._ttl_s,
        )
        with self._lock:
            if self._attempts.get(host) is not attempt:
                return  # it came too late
            self._accept(client, granted.fence, sent_s)

    def _accept(self, client: LeaseClient, fence: int, sent_s: float) -> None:
        host = client.host
        if fence <= (client.fence or 0):
            raise CommandFailed(
                f"{host}: no valid lease",
                why=f"the host grants number {fence} after {client.fence}; numbers only grow",
                fix=f"do not trust {host} before you know who changed its host program",
                host=host,
            )
        client.fence = fence
        self._lost.pop(host, None)
        self._held[host] = fence
        self._renewed(host, sent_s)

    def forget(self, host: str) -> None:
        """
        Renew the lease of *host* no longer; it ends with the boot of the host, or expires.
        """
        with self._lock:
            self._held.pop(host, None)
            self._attempts.pop(host, None)

    def check(self, host: str) -> None:
        """
        Refuse to go on with a host whose lease is lost.

        Raises:
            LeaseLost: It was lost since it was taken.
        """
        lost = self.loss_of(host)
        if lost is not None:
            raise lost

    def loss_of(self, host: str) -> LeaseLost | None:
        """
        Return how the lease of *host* was lost; None if it was not.
        """
        return self._lost.get(host)

    def is_lost(self, host: str) -> bool:
        return host in self._lost

    def release_all(self) -> None:
        """
        Release what is held; a lease that cannot be released expires by itself.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            held = frozenset(self._held)
            self._held.clear()
            self._attempts.clear()
        on_each(held, self._release_one)
        for client in self._clients.values():
            client.fence = None

    def _release_one(self, host: str) -> None:
        self._clients[host].call(LeaseRelease(), timeout_s=self._ttl_s)

    def _renew_due(self) -> float | None:
        try:
            return self._renew_those_due()
        except RuntimeError:  # no thread could be started: tried again while leases last
            now_s = self._clock.monotonic_s()
            with self._lock:
                self._next_s |= {host: now_s for host in self._held if self._next_s[host] == inf}
            return self._ttl_s * _RETRY

    def _renew_those_due(self) -> float:
        now_s = self._clock.monotonic_s()
        with self._lock:
            due = [host for host in self._held if self._next_s[host] <= now_s]
            # Those whose last renewal failed begin last: they may hang, the others must not wait.
            due.sort(key=lambda host: self._timeout_s[host])
            for host in due:
                self._next_s[host] = inf  # until it has ended
        # One that takes longer goes on beside the renewals of the other hosts.
        on_each(due, self._renew, within_s=self._ttl_s * share_of_worker(len(due)))
        now_s = self._clock.monotonic_s()
        with self._lock:
            times_s = [self._next_s[host] for host in self._held]
        if inf in times_s:
            return self._ttl_s * _RETRY
        nearest_s = min(times_s, default=now_s + self._ttl_s * _PERIOD)
        return max(self._ttl_s * _RETRY, nearest_s - now_s)

    def _renew(self, host: str) -> None:
        client, fence = self._clients[host], self._held.get(host)
        if fence is None:
            return
        sent_s = self._clock.monotonic_s()
        # Also a late one is asked: the host decides whether its lease has ended.
        timeout_s = min(self._timeout_s[host], max(self._left_s(host), self._ttl_s * _TIMEOUT))
        try:
            client.call(LeaseRenew(ttl_s=self._ttl_s), timeout_s=timeout_s)
        except LeaseLost as error:
            self._lose(client, fence, error, sent_s)
        except Exception as error:  # a defect too: an unnoticed end of renewals loses the lease
            if self._left_s(host) <= 0:
                self._lose(client, fence, _known(host, error), sent_s)
            else:
                self._repeat(host, fence, 2 * timeout_s)
        else:
            with self._lock:
                if self._held.get(host) == fence:
                    took_s = self._clock.monotonic_s() - sent_s
                    self._renewed(host, sent_s)
                    self._timeout_s[host] = max(self._timeout_s[host], 2 * took_s)

    def _repeat(self, host: str, fence: int, timeout_s: float) -> None:
        pause_s = min(self._ttl_s * _RETRY, self._left_s(host))
        with self._lock:
            if self._held.get(host) == fence:
                self._timeout_s[host] = timeout_s
                self._next_s[host] = self._clock.monotonic_s() + pause_s

    def _renewed(self, host: str, sent_s: float) -> None:
        self._renewed_s[host] = sent_s
        self._next_s[host] = sent_s + self._ttl_s * _PERIOD
        self._timeout_s[host] = self._ttl_s * _TIMEOUT

    def _left_s(self, host: str) -> float:
        """
        Return the seconds until the lease counts as lost without an answer.
        """
        end_s = self._renewed_s[host] + self._ttl_s * (1 - _MARGIN)
        return end_s - self._clock.monotonic_s()

    def _lose(self, client: LeaseClient, fence: int, error: DeployError, sent_s: float) -> None:
        host = client.host
        with self._lock:
            if self._held.get(host) != fence:
                return  # a newer lease was taken in between
            del self._held[host]
            loss = self._lost[host] = self._loss(host, error, sent_s)
        client.transport.close()
        self._on_loss(loss)

    def _loss(self, host: str, error: DeployError, sent_s: float) -> LeaseLost:
        since_s = self._clock.monotonic_s() - self._renewed_s[host]
        late_s = max(0.0, sent_s - self._renewed_s[host] - self._ttl_s * _PERIOD)
        return LeaseLost(
            f"{host}: the lease was lost",
            why=f"its renewal failed: {error.what}: {error.why}; it lives {self._ttl_s:g} s, was "
            f"last renewed {since_s:.1f} s ago, and this renewal began {late_s:.1f} s late",
            fix=f"inv status shows {host} and who holds it; if nobody took it over, and {host} "
            "answers: raise release.lease_ttl, or run it from a machine with less load",
            host=host,
        )


def share_of_worker(due: int) -> float:
    """
    Return how long one of *due* renewals may keep a worker from the others, in times to live.

    A host whose renewal is due begins in the same round, or in the next one: at most twice _ROUND
    late, which is one interval, with two thirds of its lease over.
    """
    return min(_TIMEOUT, _ROUND * WORKERS / max(1, due))


def _known(host: str, error: Exception) -> DeployError:
    return error if isinstance(error, DeployError) else unexpected(host, error)
