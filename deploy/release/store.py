"""
Where the desired state of a fleet lives: on its own hosts, or in a store of the operator's.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from deploy.clock import Clock
from deploy.errors import (
    DeployError,
    EpochOld,
    LeaseHeld,
    LeaseLost,
    PreconditionError,
    TransportError,
)
from deploy.host.protocol import StateRead, StateStamp, StateWrite
from deploy.leases.keeper import LeaseKeeper
from deploy.release.desired import Desired
from deploy.release.desired_text import from_text, to_text
from deploy.release.observe import ANSWER_WITHIN_S, Observed, look
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each

_LEAP = 1000  # epochs that operators may have begun without a majority
_ATTEMPTS = 4  # to win an epoch, beside operators that begin in the same moment


Known = Mapping[str, Observed | DeployError]


class StateStore(Protocol):
    """
    The desired state, its epoch, and who holds it.

    Attributes:
        refused: Hosts that did not give their lease, with the reason.
        unavailable: Why the place that the fleet file names was done without; None: it was not.
    """

    refused: dict[str, DeployError]
    unavailable: DeployError | None

    def read(self, known: Known | None = None) -> Desired | None:
        """
        Return the desired state; None before the first release.

        Hosts that are slow to answer are waited for only where they can decide.

        Args:
            known: Hosts that were observed just now, or their errors: they are not asked again.

        Raises:
            PreconditionError: The places that hold it do not agree.
            TransportError: Too few of them answer.
        """

    def acquire(self, *, steal: bool, is_way_back: bool, known: Known | None = None) -> int:
        """
        Win an epoch, take the leases of the hosts under it, and return it.

        Args:
            steal: Also from an operator who holds it.
            is_way_back: Hosts that do not answer are left out, however many they are.
            known: Hosts that were observed just now, or their errors: they are not asked again.
                Where another operator has begun since, all are.

        Raises:
            LeaseHeld: Another operator holds it; the error names the owner.
            TransportError: Too few answer.
        """

    def write(self, desired: Desired) -> None:
        """
        Store *desired* under the epoch that was won.

        Raises:
            LeaseLost: Another operator has begun since.
            TransportError: Too few answer.
        """

    def release(self) -> None:
        """
        Give the leases back.
        """


class HostStore:
    """
    The desired state on the hosts of the fleet.

    An epoch is won, and a state is stored, where more than half of the hosts say so.  What is read
    is the newest state that more than half of the hosts have, or have had: a host that says
    otherwise decides nothing.

    Args:
        unavailable: Why it stands in for another place.

    Attributes:
        refused: Hosts that did not give their lease, with the reason.
    """

    def __init__(
        self,
        clients: Mapping[str, HostClient],
        keeper: LeaseKeeper,
        clock: Clock,
        *,
        within_s: float | None = None,
        unavailable: DeployError | None = None,
    ) -> None:
        self._clients, self._keeper, self._clock = clients, keeper, clock
        self.unavailable = unavailable
        self._within_s = within_s
        self._is_way_back = False
        self.refused: dict[str, DeployError] = {}

    def read(self, known: Known | None = None) -> Desired | None:
        known = known or {}
        seen, errors = look_at_unknown(self._clients, known, within_s=self._within_s)
        slow = {
            name: self._clients[name]
            for name, error in errors.items()
            if name not in known and isinstance(error, TransportError)
        }
        if slow and self._within_s is not None and not _is_certain(seen, len(self._clients)):
            asked, answers = look(slow)
            seen |= asked
            errors = {n: answers.get(n, e) for n, e in errors.items() if n not in asked}
        return agreed(self._clients, {n: seen[n] for n in self._clients if n in seen}, errors)

    def acquire(self, *, steal: bool, is_way_back: bool, known: Known | None = None) -> int:
        self._is_way_back = is_way_back
        within_s = self._within_s
        for attempt in range(_ATTEMPTS):
            seen, errors = look_at_unknown(self._clients, known or {}, within_s=within_s)
            epoch = next_epoch([current.epoch for current in seen.values()], len(self._clients))
            refused = self._keeper.take_all(seen, epoch=epoch, steal=steal, within_s=within_s)
            self.refused = {**errors, **refused}
            granted = len(seen) - len(refused)
            raced = [e for e in refused.values() if isinstance(e, EpochOld)]
            was_known, known = bool(known), None
            if raced and was_known:
                self._keeper.release_all()
                continue
            if granted and (is_way_back or 2 * granted > len(self._clients)):
                held = [e for e in refused.values() if isinstance(e, LeaseHeld)]
                if not is_way_back or 2 * len(held) <= len(self._clients):
                    return epoch
            self._keeper.release_all()
            if within_s is not None and not granted and _has_silent(self.refused):
                within_s = None  # no host is that fast: a way back gives each its full time
                continue
            if not raced or attempt + 1 == _ATTEMPTS:
                raise self._lost_race(granted)
            self._clock.sleep(random.uniform(0.1, 0.5 * (attempt + 1)))  # noqa: S311
        raise AssertionError("the last attempt returns or raises")

    def write(self, desired: Desired) -> None:
        text = to_text(desired)
        holders = [name for name in self._clients if name in self._keeper.held]

        def one(name: str) -> None:
            self._clients[name].call(StateWrite(desired.number, text))

        # A release that turns round goes back with the hosts that answer.
        within_s = ANSWER_WITHIN_S if desired.is_way_back else self._within_s
        errors = on_each(holders, one, within_s=within_s)
        written = len(holders) - len(errors)
        if self._is_way_back or 2 * written > len(self._clients):
            return
        taken = [e for e in errors.values() if isinstance(e, LeaseLost)]
        if taken:
            raise taken[0]
        raise _too_few(written, len(self._clients), {**self.refused, **errors})

    def release(self) -> None:
        self._keeper.release_all()

    def _lost_race(self, granted: int) -> DeployError:
        held = [e for e in self.refused.values() if isinstance(e, LeaseHeld)]
        if held:
            return held[0]
        first = self.refused[min(self.refused)] if self.refused else None
        if first is not None and not isinstance(first, TransportError) and granted == 0:
            return first
        return _too_few(granted, len(self._clients), self.refused)


def sorted_out(known: Known) -> tuple[dict[str, Observed], dict[str, DeployError]]:
    """
    Return what is known of hosts, and the errors of the others.
    """
    seen = {name: one for name, one in known.items() if isinstance(one, Observed)}
    return seen, {name: one for name, one in known.items() if isinstance(one, DeployError)}


def look_at_unknown(
    clients: Mapping[str, HostClient], known: Known, *, within_s: float | None
) -> tuple[dict[str, Observed], dict[str, DeployError]]:
    """
    Return what `look` does, with hosts that are *known* not asked again.
    """
    asked = {name: client for name, client in clients.items() if name not in known}
    seen, errors = look(asked, within_s=within_s) if asked else ({}, {})
    of_known = sorted_out({name: one for name, one in known.items() if name in clients})
    seen, errors = seen | of_known[0], errors | of_known[1]
    return {name: seen[name] for name in clients if name in seen}, errors


def next_epoch(epochs: Iterable[int], fleet_size: int) -> int:
    """
    Return an epoch that is newer than those of the hosts.

    A host far beyond what more than half of the hosts have seen is not believed: it refuses its
    lease, and cannot use up the numbers of the others.
    """
    newest_first = sorted(epochs, reverse=True)
    majority = fleet_size // 2 + 1
    reached = newest_first[majority - 1] if len(newest_first) >= majority else 0
    if len(newest_first) < majority and newest_first:
        reached = newest_first[-1]
    return 1 + max((epoch for epoch in newest_first if epoch <= reached + _LEAP), default=0)


def agreed(
    clients: Mapping[str, HostClient],
    seen: Mapping[str, Observed],
    errors: Mapping[str, DeployError],
) -> Desired | None:
    """
    Return the newest desired state that more than half of the hosts have, or have had.

    A host that has a newer one had this one too: an operator died while it wrote.

    Raises:
        PreconditionError: Two texts claim to be that state.
        TransportError: No more than half of the hosts answer.
    """
    if 2 * len(seen) <= len(clients):
        raise _too_few(len(seen), len(clients), errors)
    stamps = {name: current.state for name, current in seen.items()}
    found = _newest(stamps, len(clients))
    if found is None:
        return None
    epoch, number = found
    holders = {n: s for n, s in stamps.items() if s and (s.epoch, s.number) == found}
    hashes = Counter(stamp.sha256 for stamp in holders.values())
    (first, most), *others = hashes.most_common(2)
    if others and others[0][1] == most:
        raise PreconditionError(
            "the hosts do not agree on the desired state",
            why=f"{', '.join(holders)} hold different texts of {epoch}.{number}",
            fix="begin anew: inv rollback --to VERSION, or inv release",
        )
    for name in (n for n, stamp in holders.items() if stamp.sha256 == first):
        try:
            text = clients[name].call(StateRead())
        except DeployError:
            continue
        if text.stamp is not None and text.stamp.sha256 == first:
            return from_text(text.text, epoch, number)
    raise TransportError(
        "the desired state cannot be read",
        why=f"of {', '.join(holders)} none sends the text of {epoch}.{number}",
        fix="inv status, then the command again",
    )


def _newest(stamps: Mapping[str, StateStamp | None], fleet_size: int) -> tuple[int, int] | None:
    """
    Return the newest (epoch, number) that more than half of *fleet_size* hosts have reached.
    """
    reached = sorted(((s.epoch, s.number) for s in stamps.values() if s), reverse=True)
    majority = fleet_size // 2 + 1
    return reached[majority - 1] if len(reached) >= majority else None


def _has_silent(errors: Mapping[str, DeployError]) -> bool:
    return any(isinstance(error, TransportError) for error in errors.values())


def _is_certain(seen: Mapping[str, Observed], fleet_size: int) -> bool:
    """
    Return whether the other hosts cannot change what *seen* agree on.

    More than half of the hosts have the newest state of *seen*: no newer one has as many.
    """
    if 2 * len(seen) <= fleet_size:
        return False
    stamps = {name: current.state for name, current in seen.items()}
    newest = max(((s.epoch, s.number) for s in stamps.values() if s), default=None)
    return newest == _newest(stamps, fleet_size)


def _too_few(count: int, of: int, errors: Mapping[str, DeployError]) -> DeployError:
    reasons = "; ".join(f"{error.what}: {error.why}" for _, error in sorted(errors.items()))
    return TransportError(
        f"only {count} of {of} hosts answer",
        why=f"a release needs more than half of the fleet; {reasons or 'no reason is known'}",
        fix="bring them back (inv status), or take hosts that are gone out of the fleet file; "
        "going back needs no majority: inv rollback",
    )
