"""
What a way back does with each host: who serves the target, who goes to it, who is left out.  Pure.

Hosts with unlike histories do not wait for each other.  A host goes to a bundle that is not on its
own record only where the operator named it or more than half of the hosts have it on record.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deploy.errors import DeployError, NothingToRollBackTo
from deploy.host.protocol import GoodRelease
from deploy.release.observe import Observed, needs_reviving
from deploy.release.rollback_target import (
    choose_bundle,
    is_digest_of,
    is_settled,
    most_common,
    on_record,
    record_of,
    vote_of,
)


class Way(StrEnum):
    SERVES = "serves"  # alone, ready, with all the traffic; nothing has to be done
    GO = "go"  # the bundle is on the host
    STAGE_FIRST = "stage first"  # the operator's store has the bundle, the host has not
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class HostTarget:
    """
    One host's part.

    Attributes:
        target: The release as the host has it on record, else as most hosts have it.
        is_recorded: It is on the host's own record.  Otherwise it may be older than what the host
            recorded as good, and is staged and started with permission.
        why: A clause for the plan: why it is left out, or what is special.
        error: Of a host that is left out: what the command ends with; None where nothing serves.
        revive: Why the host has to be revived first; None: it has not.
        stop_traffic: Left out, and serves what the fleet leaves: its traffic is taken off, once
            another host serves the target.
    """

    host: str
    way: Way
    target: GoodRelease
    is_recorded: bool = True
    why: str = ""
    error: DeployError | None = None
    revive: str | None = None
    stop_traffic: bool = False


@dataclass(frozen=True, slots=True)
class Targets:
    """
    Attributes:
        target: The release as most of its hosts have it on record.
        reason: One line: where the fleet goes, and each host that is treated otherwise.
        leaving: Bundle that the fleet leaves; None where there is no such.
    """

    target: GoodRelease
    hosts: tuple[HostTarget, ...]
    reason: str
    leaving: str | None = None

    def of(self, *ways: Way) -> tuple[HostTarget, ...]:
        return tuple(host for host in self.hosts if host.way in ways)

    @property
    def is_noop(self) -> bool:
        acted_on = self.of(Way.GO, Way.STAGE_FIRST)
        return not acted_on and not any(host.stop_traffic for host in self.hosts)

    @property
    def errors(self) -> dict[str, DeployError]:
        return {host.host: host.error for host in self.hosts if host.error is not None}


def plan_targets(
    observed: Mapping[str, Observed],
    to: str | None,
    unreadable: Mapping[str, DeployError],
    in_store: Mapping[str, str],
    *,
    leaving: str | None = None,
) -> Targets:
    """
    Return what becomes of each host; `choose_bundle` has the rule for the target.

    Args:
        to: Release id, version or digest of another target.
        unreadable: Hosts that could not be observed, with their errors.
        in_store: Versions of the operator's bundles for this fleet, by digest.
        leaving: Bundle that the fleet leaves, where the desired state has it; else what more than
            half of the hosts that go to the target serve now.

    Raises:
        NothingToRollBackTo: No host has such a release on record, or the hosts do not agree.
        UsageError: *to* is empty, or a name of more than one bundle.
        DeployError: No host can be read.
    """
    if not observed:
        if not unreadable:
            raise NothingToRollBackTo(
                "there is no release to roll back to", why="no hosts", fix="inv release"
            )
        raise unreadable[min(unreadable)]
    bundle = choose_bundle(observed, to)
    records = {n: record for n, c in observed.items() if (record := record_of(c, bundle))}
    target = most_common(records)
    planner = _Planner(target, records, observed, to, in_store)
    hosts = [planner.host(current) for current in observed.values()]
    hosts += [
        HostTarget(name, Way.LEFT_OUT, target, False, f"{error.what}: {error.why}", error)
        for name, error in unreadable.items()
    ]
    leaving = leaving or _leaving(observed, hosts)
    hosts = [_with_stop(host, observed.get(host.host), leaving, hosts) for host in hosts]
    reason = _reason(target, hosts) + (_dissent(observed, bundle) if to is None else "")
    return Targets(target, tuple(hosts), reason, leaving)


class _Planner:
    def __init__(
        self,
        target: GoodRelease,
        records: Mapping[str, GoodRelease],
        observed: Mapping[str, Observed],
        to: str | None,
        in_store: Mapping[str, str],
    ) -> None:
        self._target, self._records, self._in_store = target, records, in_store
        with_record = sum(1 for current in observed.values() if current.good)
        # What a few hosts call by that name is no reason to start it on the others.
        self._is_agreed = 2 * len(records) > with_record
        bundle = target.bundle
        self._is_named = to is not None and (to == in_store.get(bundle) or is_digest_of(to, bundle))

    def host(self, current: Observed) -> HostTarget:
        bundle = self._target.bundle
        record = self._records.get(current.host)
        if record is not None:
            if _serves_alone(current, bundle):
                return HostTarget(current.host, Way.SERVES, record)
            revive = needs_reviving(current)
            return HostTarget(current.host, Way.GO, record, revive=revive)
        if not self._is_agreed and not self._is_named:
            return self._left_out(current, "and most of the hosts have not either")
        if bundle in current.staged:
            way, why = Way.GO, "it is not on its record"
        elif bundle in self._in_store:
            way, why = Way.STAGE_FIRST, "it gets the bundle from this machine"
        else:
            return self._left_out(current, "and this machine's store has no such bundle")
        revive = needs_reviving(current)
        return HostTarget(current.host, way, self._target, False, why, revive=revive)

    def _left_out(self, current: Observed, reason: str) -> HostTarget:
        target = self._target
        why = f"it has no {target.version} on record, only: {on_record(current)}; {reason}"
        serves = current.stable
        if serves is None:
            return HostTarget(current.host, Way.LEFT_OUT, target, False, why)
        error = NothingToRollBackTo(
            f"{current.host}: it cannot go back to {target.version}, and serves {serves.version}",
            why=why,
            fix=f"inv rollback --to {target.version}, or --to {target.bundle[:12]}, on the machine "
            f"that has the bundle; or inv release with it and --limit {current.host}",
            host=current.host,
        )
        return HostTarget(current.host, Way.LEFT_OUT, target, False, why, error)


def _serves_alone(current: Observed, bundle: str) -> bool:
    """
    Return whether *bundle* is all that runs and serves, ready, and the last good release.
    """
    if current.unfinished or current.paused or current.pending:
        return False
    serving = [slot for slot in current.slots if slot.has_traffic]
    if len(serving) != 1 or serving[0].bundle != bundle or current.good[-1].bundle != bundle:
        return False
    is_up = serving[0].unit == "active" and serving[0].is_ready
    return is_up and all(slot.is_idle for slot in current.slots if slot is not serving[0])


def _leaving(observed: Mapping[str, Observed], hosts: list[HostTarget]) -> str | None:
    """
    Return the bundle that more than half of the hosts leave that go to the target.
    """
    going = [host for host in hosts if host.way in (Way.GO, Way.STAGE_FIRST)]
    served = Counter(_serving(observed[host.host]) for host in going)
    bundle, count = served.most_common(1)[0] if served else (None, 0)
    return bundle if bundle != _target_of(going) and 2 * count > len(going) else None


def _target_of(hosts: list[HostTarget]) -> str | None:
    return hosts[0].target.bundle if hosts else None


def _serving(current: Observed) -> str | None:
    most = max(current.slots, key=lambda slot: slot.weight_pct or 0)
    return most.bundle if most.has_traffic else None


def _with_stop(
    host: HostTarget, current: Observed | None, leaving: str | None, hosts: list[HostTarget]
) -> HostTarget:
    """
    Return *host* with its traffic taken off, where it is left with what the fleet leaves.

    More than half of the hosts leave it: the word of a few takes no other host out of service.
    """
    if host.way is not Way.LEFT_OUT or current is None or leaving is None:
        return host
    arriving = sum(1 for other in hosts if other.way is not Way.LEFT_OUT)
    if 2 * arriving <= len(hosts) or _serving(current) != leaving:
        return host
    why = f"{host.why}; its traffic is taken off, since it serves what the others leave"
    return HostTarget(host.host, host.way, host.target, False, why, host.error, stop_traffic=True)


def _reason(target: GoodRelease, hosts: list[HostTarget]) -> str:
    """
    Return where the fleet goes, and which hosts are staged or left out.
    """
    going = [host for host in hosts if host.way in (Way.GO, Way.STAGE_FIRST)]
    serving = [host.host for host in hosts if host.way is Way.SERVES]
    if going:
        reason = f"back to {target.version} ({target.release})"
    elif len(serving) == len(hosts):
        reason = f"every host serves {target.version} already"
    elif serving:
        reason = f"{', '.join(serving)}: {target.version} serves already"
    else:
        reason = f"no host can go to {target.version}"
    reason += "".join(f"; {host.host}: {host.why}" for host in going if host.why)
    left_out = [host for host in hosts if host.way is Way.LEFT_OUT]
    if left_out:
        reason += "; not " + "; ".join(f"{left.host} ({left.why})" for left in left_out)
    return reason


def _dissent(observed: Mapping[str, Observed], bundle: str) -> str:
    """
    Return a note on the hosts that say something else about the last release than the most.
    """
    recorded = {name: current for name, current in observed.items() if current.good}
    most_are_settled = 2 * sum(map(is_settled, recorded.values())) > len(recorded)
    names = [
        name
        for name, current in recorded.items()
        if is_settled(current) != most_are_settled and vote_of(current) not in (bundle, None)
    ]
    if not names:
        return ""
    said = "has not ended" if most_are_settled else "has ended"
    return (
        f"; {', '.join(names)}: the last release {said} there, unlike on most hosts, which decide "
        f"(inv rollback --limit {','.join(names)} takes these alone where they would go)"
    )
