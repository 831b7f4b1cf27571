"""
Reboots hosts in waves: close the door, drain, reboot, prove, open the door.

Nothing is kept on this machine.  A closed door says which hosts are under way, so the same command
goes on where another one was killed.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy.clock import Clock
from deploy.errors import (
    CommandFailed,
    DeployError,
    LeaseHeld,
    PreconditionError,
    TransportError,
)
from deploy.foreign_text import visible
from deploy.host.protocol import (
    DoorSet,
    HostStatus,
    Measure,
    PublicAsk,
    Reboot,
    RebootReason,
    SlotStatus,
    Status,
)
from deploy.leases.keeper import LeaseKeeper
from deploy.provision import lease_clients as provisioning
from deploy.provision.differences import ResourceStep, fact_query, steps_to
from deploy.provision.report import EventKind, ProvisionEvent
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import VENV_TIMEOUT_S, ComparedTorch
from deploy.provision.waves import next_wave, size_of
from deploy.provision.window import Window
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each

PURPOSE = "reboot"  # what the leases say they are held for
BACK_S = 1800.0  # servers with much memory take many minutes to test it
QUIET_S = 10.0  # without a request, after which a host counts as drained
_POLL_S = 2.0
_CALL_S = 20.0
_RETAKE_S = 60.0  # for the lease, once a host answers again
_END_S = 30.0  # for hosts under way, when the run is interrupted


@dataclass(frozen=True, slots=True)
class RebootPolicy:
    """
    Attributes:
        waves: As `parse_waves` returns them.
        window: None: at any time.
        interrupts: Reboot also a host that still gets requests when its drain ends.
        drain_s, start_s: Longest time of a drain, and of the start of a slot.
        facts_s: Longest time of a host's answer with its facts, as in provisioning.
        back_s: Longest time until a host answers again.
    """

    waves: tuple[str, ...]
    window: Window | None
    interrupts: bool
    drain_s: float
    start_s: float
    facts_s: float
    back_s: float = BACK_S


@dataclass(frozen=True, slots=True)
class RebootOutcome:
    """
    Attributes:
        rebooted: Hosts that were rebooted, or brought back, and serve again.
        left: Why other hosts still need a reboot.
        error: Why it stopped; None: no chosen host needs a reboot any more.
    """

    rebooted: tuple[str, ...]
    left: Mapping[str, tuple[RebootReason, ...]]
    error: DeployError | None


class Reboots:
    """
    The reboots of one run.

    Args:
        clients: Of the whole fleet: hosts that were not chosen count where they cannot serve.
        chosen: Hosts that may be rebooted.
        keeper: Of the leases of *clients*, which keep releases and other runs away.
        wanted: What each chosen host should have, which is compared after its reboot.
    """

    def __init__(
        self,
        clients: Mapping[str, HostClient],
        chosen: Sequence[str],
        keeper: LeaseKeeper,
        wanted: Mapping[str, ResourceSet],
        policy: RebootPolicy,
        clock: Clock,
        report: Callable[[ProvisionEvent], None],
    ) -> None:
        self._clients, self._chosen, self._keeper = clients, chosen, keeper
        self._wanted, self._policy, self._clock, self._report = wanted, policy, clock, report
        self._rebooted: list[str] = []
        self._is_ending = threading.Event()

    def run(self) -> RebootOutcome:
        """
        Reboot the chosen hosts that need it; the leases are given back in any case.
        """
        error: DeployError | None = None
        left: dict[str, tuple[RebootReason, ...]] = {}
        try:
            self._take_leases()
            number = 0
            while wave := self._next_wave(number, left):
                self._run_wave(wave)
                number += 1
        except DeployError as problem:
            error = problem
        finally:
            self._keeper.release_all()
        done = tuple(host for host in self._chosen if host in self._rebooted)
        return RebootOutcome(done, {h: r for h, r in left.items() if h not in done}, error)

    # -- the next wave

    def _take_leases(self) -> None:
        for host, error in self._keeper.take_all(self._clients).items():
            if host in self._chosen or isinstance(error, LeaseHeld):
                raise error

    def _next_wave(self, number: int, left: dict[str, tuple[RebootReason, ...]]) -> tuple[str, ...]:
        """
        Return the hosts to reboot now; empty: none needs it.

        Raises:
            PreconditionError: A release is open, the window is closed, or too many hosts are away.
        """
        seen = self._look()
        for host, status in seen.items():
            _refuse_open_release(host, status)
        closed = [h for h in self._chosen if h in seen and seen[h].is_open is False]
        needing = [h for h in self._chosen if h in seen and seen[h].reboot_reasons]
        left.clear()
        left |= {host: seen[host].reboot_reasons for host in needing}
        if not closed and not needing:
            return ()
        away = [h for h in self._clients if h not in seen or seen[h].is_open is False]
        away = [host for host in away if host not in closed]
        size = size_of(self._policy.waves, number, len(self._clients))
        wave = next_wave(size, needing, closed, away)
        if not wave:
            raise PreconditionError(
                f"{', '.join(away)}: away already",
                why=f"a wave takes {size} of {len(self._clients)} hosts, and these do not answer "
                "or take no requests",
                fix="bring them back, or choose larger waves; then the same command goes on",
            )
        self._refuse_outside_window(needing)
        return wave

    def _look(self) -> dict[str, HostStatus]:
        """
        Return the state of the hosts that answer.

        Raises:
            DeployError: A chosen host does not.
        """
        seen: dict[str, HostStatus] = {}

        def one(host: str) -> None:
            seen[host] = self._status(host)

        errors = on_each(self._clients, one)
        for host, error in errors.items():
            if host in self._chosen:
                raise error
        return {host: seen[host] for host in self._clients if host not in errors}

    def _refuse_outside_window(self, needing: Sequence[str]) -> None:
        window = self._policy.window
        if window is not None and not window.is_open(self._clock.utc()):
            raise PreconditionError(
                "the window for reboots is closed",
                why=f"it is {window}; {', '.join(needing) or 'no host'} still needs a reboot",
                fix=f"the same command goes on from {window.begin:%H:%M}",
            )

    # -- one wave

    def _run_wave(self, wave: Sequence[str]) -> None:
        """
        Bring the hosts of *wave* through their reboots, all at once.

        Raises:
            DeployError: One did not come back; the others of the wave have ended too.
        """
        errors: dict[str, DeployError] = {}
        has_ended = threading.Event()  # not Thread.join, which an interrupt leaves in disorder

        def work() -> None:
            errors.update(on_each(wave, self._one))
            has_ended.set()

        try:
            threading.Thread(target=work, daemon=True).start()
            while not has_ended.wait(0.5):
                pass
        except BaseException:
            self._is_ending.set()
            has_ended.wait(_END_S)
            raise
        if errors:
            first, *others = errors
            for host in others:
                self._say(host, f"{errors[host].what}: {errors[host].why}")
            raise errors[first]

    def _one(self, host: str) -> None:
        began_s = self._clock.monotonic_s()
        status = self._status(host)
        if status.reboot_reasons:
            self._drain(host, status)
            self._reboot(host, status.boot_id)
        else:
            self._say(host, "closed by an earlier run; it needs no reboot any more")
        self._prove(host, status.reboot_reasons)
        self._open(host)
        self._rebooted.append(host)
        took_s = self._clock.monotonic_s() - began_s
        self._report(ProvisionEvent(host, EventKind.REBOOTED, took_s=took_s))

    def _drain(self, host: str, status: HostStatus) -> None:
        self._say(host, f"needs a reboot: {reasons_text(status.reboot_reasons)}")
        self._clients[host].call(DoorSet(is_open=False), timeout_s=_CALL_S)
        if not _serving(status):
            self._say(host, "door closed; it serves nothing")
            return
        self._say(host, "door closed: balancers in front of it see 503 at /readyz")
        try:
            self._wait_until_quiet(host)
        except DeployError:
            self._open(host)
            raise

    def _wait_until_quiet(self, host: str) -> None:
        """
        Wait until no request is in flight, and none has come for QUIET_S.

        Raises:
            PreconditionError: Requests still come at the end of the drain.
        """
        now_s = self._clock.monotonic_s()
        quiet_since_s, end_s = now_s, now_s + max(self._policy.drain_s, QUIET_S)
        before, in_flight = self._traffic(host)
        while now_s - quiet_since_s < QUIET_S or in_flight:
            if now_s >= end_s:
                break
            self._sleep(_POLL_S)
            now_s = self._clock.monotonic_s()
            attempts, in_flight = self._traffic(host)
            if attempts != before:
                before, quiet_since_s = attempts, now_s
        else:
            self._say(host, "drained")
            return
        if self._policy.interrupts:
            self._say(host, f"not drained: {in_flight} requests in flight are cut")
            return
        raise PreconditionError(
            f"{host}: still gets requests",
            why=f"{self._policy.drain_s:.0f} s after its door was closed, {in_flight} were in "
            "flight; nothing in front of it takes a host out whose /readyz answers 503",
            fix="let the balancer check /readyz, or raise release.drain_timeout; with --interrupt "
            "the users of such a host lose service while it reboots",
            host=host,
        )

    def _traffic(self, host: str) -> tuple[int, int]:
        """
        Return the requests that all slots got so far, and those in flight.
        """
        slots = self._clients[host].call(Measure(), timeout_s=_CALL_S).slots.values()
        proxies = [slot.proxy for slot in slots if slot.proxy is not None]
        return sum(one.attempts for one in proxies), sum(one.sessions for one in proxies)

    def _reboot(self, host: str, boot_id: str) -> None:
        """
        Reboot, and wait until the host answers in another boot.

        Raises:
            TransportError: It does not answer.
            CommandFailed: It answers, and was not rebooted.
        """
        self._say(host, "rebooting")
        began_s = self._clock.monotonic_s()
        try:
            self._clients[host].call(Reboot(boot_id), timeout_s=_CALL_S)
        except TransportError:
            pass  # the connection may end before the answer
        except DeployError:
            self._open(host)
            raise
        self._keeper.forget(host)  # a lease ends with its boot
        last: DeployError | None = None
        while self._clock.monotonic_s() - began_s < self._policy.back_s:
            self._sleep(_POLL_S)
            try:
                status = self._status(host)
            except DeployError as error:
                last = error
                continue
            last = None
            if status.boot_id != boot_id:
                took_s = self._clock.monotonic_s() - began_s
                self._say(host, f"back after {took_s:.0f} s")
                return
        raise self._not_back(host, last)

    def _not_back(self, host: str, last: DeployError | None) -> DeployError:
        fix = (
            f"look at its console and bring it back; then the same command goes on.  {host} takes "
            "no requests until then"
        )
        waited = f"{self._policy.back_s:.0f} s"
        if last is None:
            return CommandFailed(
                f"{host}: was not rebooted",
                why=f"it still answers in the old boot {waited} after systemctl reboot",
                fix=fix,
                host=host,
            )
        return TransportError(
            f"{host}: did not come back",
            why=f"no answer within {waited} after its reboot began: {last.why}",
            fix=fix,
            host=host,
        )

    # -- the proof

    def _prove(self, host: str, before: Sequence[RebootReason]) -> None:
        """
        Args:
            before: Why it was rebooted.

        Raises:
            DeployError: The host does not serve as before, or still needs a reboot.  Where only
                reasons of before are left it serves again: closed, it would wait for nothing.
        """
        self._retake(host)
        status = self._until_serving(host)
        self._compare(host)
        for slot, one in _serving(status).items():
            self._clients[host].call(PublicAsk(slot, one.version or ""), timeout_s=2 * _CALL_S)
            self._say(host, f"{visible(one.version or slot)} answers through the public port")
        left = status.reboot_reasons
        if not left:
            return
        is_vain = all(reason in before for reason in left)
        if is_vain:
            self._open(host)
        state = "it serves again" if is_vain else "it takes no requests until then"
        raise PreconditionError(
            f"{host}: still needs a reboot",
            why=f"after it{', as before' if is_vain else ''}: {reasons_text(left)}",
            fix=f"find out what it boots, such as an older kernel that its boot loader names; "
            f"{state}, and inv provision --waves 1 --limit {host} reboots it again",
            host=host,
        )

    def _retake(self, host: str) -> None:
        end_s = self._clock.monotonic_s() + _RETAKE_S
        if host in self._keeper.held:
            return
        while True:
            try:
                self._keeper.take(host)
                return
            except LeaseHeld:
                raise
            except DeployError:
                if self._clock.monotonic_s() >= end_s:
                    raise
                self._sleep(_POLL_S)

    def _until_serving(self, host: str) -> HostStatus:
        """
        Return the state of the host once each slot with traffic is UP.

        Raises:
            CommandFailed: One is not in time.
        """
        end_s = self._clock.monotonic_s() + self._policy.start_s
        while True:
            status = self._status(host)
            late = [
                slot
                for slot, one in status.slots.items()
                if one.weight is None or (one.weight and not (one.ready and one.haproxy == "UP"))
            ]
            if not late:
                return status
            if self._clock.monotonic_s() >= end_s:
                raise CommandFailed(
                    f"{host}: does not serve after its reboot",
                    why=f"{', '.join(late)} not UP within {self._policy.start_s:.0f} s",
                    fix=f"journalctl -b -u haproxy -u 'slipway-runtime@*' on {host}; then the same "
                    "command goes on",
                    host=host,
                )
            self._sleep(_POLL_S)

    def _compare(self, host: str) -> None:
        """
        Refuse a host that is not as pinned after its boot.

        The comparison of torch that waited for the driver of this boot is made up for first.

        Raises:
            DeployError: Something differs, or torch computes otherwise on a GPU (`TorchMismatch`).
        """
        wanted = self._wanted.get(host)
        if wanted is None:
            return
        steps = self._steps(host, wanted)
        owed = [s.resource.venv for s in steps if isinstance(s.resource, ComparedTorch)]
        # An environment that is not as pinned would be built; that is the work of provisioning.
        if owed and len(owed) == len(steps):
            self._say(host, "compares torch on the GPUs: this boot has loaded the driver")
            for venv in owed:
                result = self._clients[host].call(venv.build_request, timeout_s=VENV_TIMEOUT_S)
                if result.full_gpus:
                    full = ", ".join(map(str, result.full_gpus))
                    self._say(host, f"torch not compared on GPUs without free memory: {full}")
            steps = self._steps(host, wanted)
        left = [step.resource.name for step in steps]
        if left:
            raise PreconditionError(
                f"{host}: not as pinned after its reboot",
                why=f"these differ: {', '.join(left)}",
                fix=f"inv provision --limit {host}, then the same command goes on",
                host=host,
            )

    def _steps(self, host: str, wanted: ResourceSet) -> tuple[ResourceStep, ...]:
        facts = self._clients[host].call(fact_query(wanted), timeout_s=self._policy.facts_s)
        return steps_to(wanted, facts)

    # -- small parts

    def _open(self, host: str) -> None:
        self._clients[host].call(DoorSet(is_open=True), timeout_s=_CALL_S)

    def _status(self, host: str) -> HostStatus:
        return self._clients[host].call(Status(), timeout_s=_CALL_S)

    def _sleep(self, seconds: float) -> None:
        if self._is_ending.is_set():
            raise CommandFailed(
                "interrupted", why="this run was told to end", fix="the same command goes on"
            )
        self._clock.sleep(seconds)

    def _say(self, host: str, text: str) -> None:
        self._report(ProvisionEvent(host, EventKind.REBOOTING, change=text))


def reasons_text(reasons: Sequence[RebootReason]) -> str:
    """
    Return *reasons*, which a host says, on one line.
    """
    return "; ".join(f"{reason.cause}: {visible(reason.observed, limit=200)}" for reason in reasons)


def _serving(status: HostStatus) -> dict[str, SlotStatus]:
    return {slot: one for slot, one in status.slots.items() if one.weight}


def _refuse_open_release(host: str, status: HostStatus) -> None:
    unfinished = status.unfinished.release if status.unfinished else None
    if unfinished in (PURPOSE, provisioning.PURPOSE):
        unfinished = None  # a verb of a run that was killed; it is done again, and no release
    release = status.paused or unfinished or (status.pending.release if status.pending else None)
    if release is not None:
        raise PreconditionError(
            f"{host}: release {visible(release)} is open",
            why="a reboot would end what runs of it beside the release that serves",
            fix="inv resume or inv abort ends it; then the same command goes on",
            host=host,
        )
