"""
The desired state of a fleet in an existing etcd.

Keys, below PREFIX/FLEET: `epoch` (the newest one, and who won it), `owner` (present while that
operator is, by a lease of etcd), `state` (the desired state).  An epoch is won by comparing and
swapping `epoch`; a state is stored only while `epoch` is unchanged.

A way back needs no etcd: hosts have a copy of the state, and give a way back their leases.
"""

import json
import math
import random
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from deploy.clock import Clock, Timer
from deploy.errors import (
    DeployError,
    EpochOld,
    LeaseHeld,
    PreconditionError,
    TransportError,
)
from deploy.foreign_text import visible
from deploy.leases.keeper import LeaseKeeper
from deploy.release.desired import Desired
from deploy.release.desired_text import from_text, to_text
from deploy.release.etcd import EtcdClient, KeyValue
from deploy.release.observe import Observed
from deploy.release.store import HostStore, Known, look_at_unknown, next_epoch
from deploy.transport.client import HostClient

_ATTEMPTS = 4  # to win an epoch, beside operators that begin in the same moment
_RENEW = 1 / 3  # of the time to live
_UNAVAILABLE = (TransportError, PreconditionError)  # it does not answer, or refuses us


@dataclass(frozen=True, slots=True)
class _Entries:
    """
    The keys of a fleet, read in one step.

    Attributes:
        epoch: 0 before the first.
        winner: Who won the epoch.
        owner: Who is at work; None: nobody.
    """

    epoch: int
    winner: str | None
    owner: str | None
    epoch_revision: int
    owner_revision: int


class EtcdStore:
    """
    The desired state in etcd; hosts are leased with the epoch that was won there.

    Args:
        keeper: Its owner is the one who is present in etcd.
        prefix: PREFIX/FLEET.
        within_s: Limit for hosts that do not answer, as of `HostStore`.

    Attributes:
        refused: Hosts that did not give their lease, with the reason.
        unavailable: Why etcd was done without; None: it was not.
    """

    def __init__(
        self,
        etcd: EtcdClient,
        prefix: str,
        clients: Mapping[str, HostClient],
        keeper: LeaseKeeper,
        clock: Clock,
        *,
        within_s: float | None = None,
    ) -> None:
        self._etcd, self._clients, self._keeper, self._clock = etcd, clients, keeper, clock
        self._epoch_key, self._owner_key, self._state_key = (
            f"{prefix}/{name}" for name in ("epoch", "owner", "state")
        )
        self._within_s = within_s
        self._on_hosts = HostStore(clients, keeper, clock, within_s=within_s)
        self._is_on_hosts = False  # etcd did not answer when a way back began
        self._epoch = self._epoch_revision = self._lease = 0
        self._timer: Timer | None = None
        self._lock = threading.Lock()  # the timer puts the owner again
        self.refused: dict[str, DeployError] = {}
        self.unavailable: DeployError | None = None

    def read(self, known: Known | None = None) -> Desired | None:
        """
        Return the newest desired state of etcd and of the hosts; those have one while etcd is down.
        """
        on_hosts, stored = None, None
        try:
            [entry] = self._etcd.txn(ranges=[self._state_key]).values
            stored = _desired(entry) if entry.mod_revision else None
        except _UNAVAILABLE as error:
            self.unavailable = error
        with suppress(PreconditionError, TransportError):  # they need not agree
            on_hosts = self._on_hosts.read(known)
        if self.unavailable is not None and on_hosts is None:
            raise self.unavailable
        both = [desired for desired in (stored, on_hosts) if desired is not None]
        return max(both, key=lambda desired: (desired.epoch, desired.number), default=None)

    def acquire(self, *, steal: bool, is_way_back: bool, known: Known | None = None) -> int:
        seen, errors = look_at_unknown(self._clients, known or {}, within_s=self._within_s)
        try:
            epoch = self._win(seen, steal=steal)
        except _UNAVAILABLE as error:
            if not is_way_back:
                raise
            self.unavailable = error
            self._is_on_hosts = True
            epoch = self._on_hosts.acquire(steal=steal, is_way_back=True, known=known)
            self.refused = self._on_hosts.refused
            return epoch
        # Who may change the fleet was decided in etcd: what an earlier operator left is taken over.
        refused = self._keeper.take_all(seen, epoch=epoch, steal=True, within_s=self._within_s)
        self.refused = {**errors, **refused}
        if len(refused) == len(seen):
            self.release()
            raise self.refused[min(self.refused)]
        return epoch

    def write(self, desired: Desired) -> None:
        if self._is_on_hosts:
            self._on_hosts.write(desired)
            return
        document = {"epoch": self._epoch, "number": desired.number, "text": to_text(desired)}
        try:
            result = self._etcd.txn(
                unchanged={self._epoch_key: self._epoch_revision},
                puts=[(self._state_key, json.dumps(document).encode(), 0)],
            )
        except _UNAVAILABLE:
            self._is_on_hosts = True  # what follows is a way back, and does not wait for etcd
            with suppress(DeployError):
                self._on_hosts.write(desired)
            raise
        if not result.succeeded:
            raise self._taken_over(self._entries())
        with suppress(DeployError):  # for a way back without etcd
            self._on_hosts.write(desired)

    def release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            lease, self._lease = self._lease, 0
        if lease:
            with suppress(DeployError):  # it expires by itself
                self._etcd.revoke(lease)
        self._keeper.release_all()
        self._etcd.close()

    # -- the epoch

    def _win(self, seen: Mapping[str, Observed], *, steal: bool) -> int:
        for attempt in range(_ATTEMPTS):
            now = self._entries()
            if not steal:
                self._refuse_if_held(now, seen)
            hosts_next = next_epoch([host.epoch for host in seen.values()], len(self._clients))
            epoch = max(now.epoch + 1, hosts_next)
            lease = self._etcd.grant(math.ceil(self._keeper.ttl_s))
            won = json.dumps({"epoch": epoch, "winner": self._keeper.owner}).encode()
            self._etcd.txn(
                unchanged={
                    self._epoch_key: now.epoch_revision,
                    self._owner_key: now.owner_revision,
                },
                puts=[
                    (self._epoch_key, won, 0),
                    (self._owner_key, self._keeper.owner.encode(), lease),
                ],
            )
            # Read, and not believed: an answer that was lost may have been a success.
            after = self._entries()
            if (after.epoch, after.winner) == (epoch, self._keeper.owner):
                self._epoch, self._epoch_revision = epoch, after.epoch_revision
                self._lease = lease
                after_s = self._keeper.ttl_s * _RENEW
                self._timer = self._clock.start_timer(self._renew, after_s)
                return epoch
            with suppress(DeployError):
                self._etcd.revoke(lease)
            if attempt + 1 < _ATTEMPTS:
                self._clock.sleep(random.uniform(0.1, 0.5 * (attempt + 1)))  # noqa: S311
        raise self._taken_over(after)

    def _refuse_if_held(self, now: _Entries, seen: Mapping[str, Observed]) -> None:
        if now.owner is not None and now.owner != self._keeper.owner:
            raise _held(now.owner, f"etcd has it as present, with epoch {now.epoch}")
        # One whose fleet file has no etcd: it holds the hosts alone.
        known = {now.winner, self._keeper.owner}
        strangers = [
            host.lease_owner for host in seen.values() if host.lease_owner not in (None, *known)
        ]
        if 2 * len(strangers) > len(self._clients):
            raise _held(
                str(strangers[0]),
                f"{len(strangers)} hosts are leased to it, and etcd knows nothing",
            )

    def _renew(self) -> float | None:
        """
        Stay present; where etcd has forgotten this operator, come back unless another has begun.
        """
        with self._lock:
            if not self._lease:
                return None
            with suppress(DeployError):
                if not self._etcd.keep_alive(self._lease):
                    lease = self._etcd.grant(math.ceil(self._keeper.ttl_s))
                    result = self._etcd.txn(
                        unchanged={self._epoch_key: self._epoch_revision},
                        puts=[(self._owner_key, self._keeper.owner.encode(), lease)],
                    )
                    if not result.succeeded:
                        return None  # the next write says so
                    self._lease = lease
        return self._keeper.ttl_s * _RENEW

    def _entries(self) -> _Entries:
        epoch, owner = self._etcd.txn(ranges=[self._epoch_key, self._owner_key]).values
        number, winner = _epoch_of(epoch) if epoch.mod_revision else (0, None)
        present = visible(owner.value.decode(errors="replace")) if owner.mod_revision else None
        return _Entries(number, winner, present, epoch.mod_revision, owner.mod_revision)

    def _taken_over(self, now: _Entries) -> EpochOld:
        return EpochOld(
            f"epoch {self._epoch} is not the newest any more",
            why=f"{now.winner or 'somebody'} has won epoch {now.epoch} in etcd",
            fix="inv status shows what they do; inv abort or inv rollback takes over from them",
        )


def _held(owner: str, why: str) -> LeaseHeld:
    return LeaseHeld(
        f"{visible(owner)} is at work on the fleet",
        why=why,
        fix="wait until it ends; inv status shows it",
    )


def _epoch_of(entry: KeyValue) -> tuple[int, str]:
    document = _object(entry, "epoch")
    epoch, winner = document.get("epoch"), document.get("winner")
    if not isinstance(epoch, int) or not 0 < epoch < 2**53 or not isinstance(winner, str):
        raise _unreadable("epoch", "its fields have other types")
    return epoch, visible(winner)


def _desired(entry: KeyValue) -> Desired:
    document = _object(entry, "state")
    epoch, number, text = (document.get(name) for name in ("epoch", "number", "text"))
    if not isinstance(epoch, int) or not isinstance(number, int) or not isinstance(text, str):
        raise _unreadable("state", "its fields have other types")
    return from_text(text, epoch, number)


def _object(entry: KeyValue, key: str) -> Mapping[str, object]:
    try:
        document = json.loads(entry.value)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _unreadable(key, "it is no JSON object")
    return document


def _unreadable(key: str, why: str) -> PreconditionError:
    return PreconditionError(
        f"the key {key} in etcd is not slipway's",
        why=why,
        fix="choose another state.prefix, or delete the key: etcdctl del",
    )
