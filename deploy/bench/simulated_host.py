"""
A host that only answers: the verbs of a release and a rollback, over two slots in memory.

It keeps the lease and refuses what a host refuses without it.  It has no disk, no units and no
faults: `tests/simulation` has those, with the real host program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from deploy.host import protocol
from deploy.host.layout import SLOTS
from deploy.host.protocol import Call, ErrorKind, HostError
from deploy.host.rpc import encode_error, encode_result, parse_request

REQUESTS_PER_S = 100.0  # of each host, all good
STABLE, STABLE_VERSION = "a" * 64, "v1"
NEW_VERSION = "v2"
_BOOT = "11111111-2222-3333-4444-555555555555"
_NOTHING_SEEN = dict.fromkeys(protocol.ProxyCounters.__dataclass_fields__, 0)


@dataclass
class _Slot:
    """
    Attributes:
        served: Requests answered until `since_s`.
        since_s: When its weight was set last.
    """

    bundle: str | None = None
    version: str | None = None
    is_running: bool = False
    weight_pct: int = 0
    served: float = 0.0
    since_s: float = 0.0


@dataclass
class SimulatedHost:
    """
    Serves STABLE from blue, recorded as good.

    Attributes:
        clock: Monotonic seconds.
        counts: Calls by verb.
    """

    clock: Callable[[], float]
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = {slot: _Slot() for slot in SLOTS}
        self._slots[SLOTS[0]] = _Slot(STABLE, STABLE_VERSION, True, 100, 0.0, self.clock())
        self._good = [protocol.GoodRelease("r-stable", STABLE, STABLE_VERSION)]
        self._staged = {STABLE}
        self._epoch = self._fence = self._lines = 0
        self._lease: protocol.LeaseAcquire | None = None
        self._release: str | None = None
        self._until_s = 0.0
        self._state = protocol.StateText(None, "")
        self._pending: protocol.DeadmanArm | None = None
        self._pending_of: tuple[str, int] = ("", 0)

    def answer(self, verb: str, text: str) -> str:
        """
        Return the answer to *verb* with the document *text*, on one line.
        """
        self.counts[verb] = self.counts.get(verb, 0) + 1
        try:
            request, call = parse_request(verb, text)
            if request.NEEDS_LEASE:
                self._check_lease(call)
            return encode_result(_VERBS[type(request)](self, request, call))
        except HostError as error:
            return encode_error(error)

    # -- lease and desired state

    def _check_lease(self, call: Call) -> None:
        if not self._is_leased or call.fence != self._fence:
            raise HostError(
                ErrorKind.LEASE_LOST,
                "this lease is no longer in force",
                f"number {call.fence}, the host is at {self._fence}",
                "inv status",
            )

    @property
    def _is_leased(self) -> bool:
        return self._lease is not None and self.clock() < self._until_s

    def _acquire(self, request: protocol.LeaseAcquire, call: Call) -> protocol.LeaseGranted:
        lease = self._lease
        if lease is not None and self._is_leased and lease.owner != request.owner:
            raise HostError(ErrorKind.LEASE_HELD, "the lease is held", lease.owner, "wait")
        if request.epoch <= self._epoch and lease is not None and lease.owner != request.owner:
            raise HostError(ErrorKind.EPOCH_OLD, "a newer epoch began", f"{self._epoch}", "again")
        self._lease, self._release, self._epoch = request, call.release, request.epoch
        self._fence += 1
        return self._granted(request.ttl_s)

    def _renew(self, request: protocol.LeaseRenew, _call: Call) -> protocol.LeaseGranted:
        return self._granted(request.ttl_s)

    def _granted(self, ttl_s: float) -> protocol.LeaseGranted:
        self._until_s = self.clock() + ttl_s
        return protocol.LeaseGranted(self._fence, self._until_s)

    def _release_lease(self, _request: object, call: Call) -> protocol.LeaseReleased:
        is_own = self._is_leased and call.fence == self._fence
        if is_own:
            self._until_s = 0.0
        return protocol.LeaseReleased(is_own)

    def _write(self, request: protocol.StateWrite, _call: Call) -> protocol.StateStamp:
        text, digest = _stored(request.text)
        stamp = protocol.StateStamp(self._epoch, request.number, digest)
        self._state = protocol.StateText(stamp, text)
        return stamp

    def _read(self, _request: object, _call: Call) -> protocol.StateText:
        return self._state

    def _append(self, _request: object, _call: Call) -> protocol.EventAppended:
        self._lines += 1
        return protocol.EventAppended(self._lines)

    # -- the host's own way back

    def _arm(self, request: protocol.DeadmanArm, call: Call) -> protocol.Armed:
        self._pending, self._pending_of = request, (call.release or "", self._epoch)
        return protocol.Armed(max(0.0, self._until_s - self.clock()))

    def _confirm(self, request: protocol.DeadmanConfirm, _call: Call) -> protocol.Confirmed:
        if request.keep:
            self._pending = None
        return protocol.Confirmed(request.ask)

    def _disarm(self, _request: object, _call: Call) -> protocol.Disarmed:
        was_armed, self._pending = self._pending is not None, None
        return protocol.Disarmed(was_armed)

    # -- bundles and slots

    def _missing(self, _request: object, _call: Call) -> protocol.StageNeeds:
        return protocol.StageNeeds(False, False, (), (), 0, 1 << 40)

    def _commit(self, request: protocol.StageCommit, _call: Call) -> protocol.Staged:
        self._staged.add(request.bundle)
        return protocol.Staged(request.bundle, NEW_VERSION, "sim", False, 0, 0, False, 0.0)

    def _start(self, request: protocol.SlotStart, _call: Call) -> protocol.SlotStarted:
        version = STABLE_VERSION if request.bundle == STABLE else NEW_VERSION
        self._slots[request.slot] = _Slot(request.bundle, version, True, 0, 0.0, self.clock())
        return protocol.SlotStarted(request.slot, request.bundle, "active", 0, True, 0.0)

    def _stop(self, request: protocol.SlotStop, _call: Call) -> protocol.SlotStopped:
        self._slots[request.slot].is_running = False
        return protocol.SlotStopped(request.slot, "inactive", True, 0.0)

    def _golden(self, _request: object, _call: Call) -> protocol.GoldenResult:
        return protocol.GoldenResult(1, 1, ())

    def _shift(self, request: protocol.TrafficSet, _call: Call) -> protocol.TrafficWeights:
        now_s = self.clock()
        for name, weight_pct in request.weights.items():
            slot = self._slots[name]
            slot.served, slot.since_s = _served(slot, now_s), now_s
            slot.weight_pct = weight_pct
        weights = {name: slot.weight_pct for name, slot in self._slots.items()}
        words = {name: "UP" if slot.is_running else "MAINT" for name, slot in self._slots.items()}
        return protocol.TrafficWeights(weights, words)

    def _drain(self, _request: object, _call: Call) -> protocol.Drained:
        return protocol.Drained(0.0, 0, True)

    def _record(self, request: protocol.GoodRecord, call: Call) -> protocol.GoodReleases:
        record = protocol.GoodRelease(call.release or "", request.bundle, request.version)
        self._good.append(record)
        return protocol.GoodReleases(tuple(self._good))

    def _forget(self, request: protocol.GoodRollback, _call: Call) -> protocol.GoodReleases:
        while self._good[-1].release != request.to_release:
            self._good.pop()
        return protocol.GoodReleases(tuple(self._good))

    def _retire(self, _request: object, _call: Call) -> protocol.Retired:
        return protocol.Retired(tuple(sorted(self._staged)), (), {})

    # -- reading

    def _status(self, _request: object, _call: Call) -> protocol.HostStatus:
        lease, pending, now_s = self._lease, self._pending, self.clock()
        left_s = max(0.0, self._until_s - now_s)
        release, epoch = self._pending_of
        return protocol.HostStatus(
            boot_id=_BOOT,
            lease=protocol.LeaseStatus(lease.owner, self._release, self._fence, left_s, self._epoch)
            if lease is not None and self._is_leased
            else None,
            slots={name: _slot_status(slot) for name, slot in self._slots.items()},
            good=tuple(self._good),
            unfinished=None,
            paused=None,
            journal_damaged=0,
            free_opt_bytes=1 << 40,
            free_state_bytes=1 << 40,
            is_reserve_whole=True,
            epoch=self._epoch,
            state=self._state.stamp,
            staged=tuple(sorted(self._staged)),
            pending=protocol.Pending(release, epoch, pending.to_slot, pending.from_slot, left_s)
            if pending is not None
            else None,
            went_back=None,
            is_deadman_tested=True,
        )

    def _measure(self, _request: object, _call: Call) -> protocol.Measurement:
        now_s = self.clock()
        slots = {name: _counters(slot, now_s) for name, slot in self._slots.items()}
        return protocol.Measurement(slots)


_VERBS: Mapping[type[Any], Callable[[SimulatedHost, Any, Call], Any]] = MappingProxyType(
    {
        protocol.Status: SimulatedHost._status,
        protocol.Measure: SimulatedHost._measure,
        protocol.LeaseAcquire: SimulatedHost._acquire,
        protocol.LeaseRenew: SimulatedHost._renew,
        protocol.LeaseRelease: SimulatedHost._release_lease,
        protocol.StateWrite: SimulatedHost._write,
        protocol.StateRead: SimulatedHost._read,
        protocol.JournalAppend: SimulatedHost._append,
        protocol.DeadmanArm: SimulatedHost._arm,
        protocol.DeadmanConfirm: SimulatedHost._confirm,
        protocol.DeadmanDisarm: SimulatedHost._disarm,
        protocol.StageMissing: SimulatedHost._missing,
        protocol.StageCommit: SimulatedHost._commit,
        protocol.SlotStart: SimulatedHost._start,
        protocol.SlotStop: SimulatedHost._stop,
        protocol.Golden: SimulatedHost._golden,
        protocol.TrafficSet: SimulatedHost._shift,
        protocol.TrafficDrain: SimulatedHost._drain,
        protocol.GoodRecord: SimulatedHost._record,
        protocol.GoodRollback: SimulatedHost._forget,
        protocol.Retire: SimulatedHost._retire,
    }
)


@lru_cache(maxsize=4)
def _stored(text: str) -> tuple[str, str]:
    """
    Return *text* and its digest: hosts that store the same text share one copy.
    """
    return text, sha256(text.encode()).hexdigest()


def _served(slot: _Slot, now_s: float) -> float:
    return slot.served + (now_s - slot.since_s) * REQUESTS_PER_S * slot.weight_pct / 100


def _slot_status(slot: _Slot) -> protocol.SlotStatus:
    return protocol.SlotStatus(
        bundle=slot.bundle,
        version=slot.version,
        unit="active" if slot.is_running else "inactive",
        weight=slot.weight_pct,
        haproxy="UP" if slot.is_running else "MAINT",
        sessions=0,
        ready=slot.is_running,
    )


def _counters(slot: _Slot, now_s: float) -> protocol.SlotCounters:
    count = int(_served(slot, now_s))
    return protocol.SlotCounters(
        own=protocol.OwnCounters(requests=count, errors=0, answers_5xx=0),
        proxy=protocol.ProxyCounters(**_NOTHING_SEEN | {"attempts": count, "answers_2xx": count}),
        problem=None,
        restarts=0,
        is_ready=slot.is_running,
        unit="active" if slot.is_running else "inactive",
    )
