"""
Runs a release plan: stage, start, canary, judge, promote, retire; or takes it back.

The only loop with effects.  Each host's state is kept by `machine.advance`; each effect is an
intent and a result in the journal of the host that it happens on.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from deploy.errors import DeployError, LeaseLost, TransportError
from deploy.host.protocol import GoodRecord, Retire
from deploy.inventory.schema import ReleasePolicy
from deploy.release import host_commands, verdicts
from deploy.release.clock import Clock
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome, Report
from deploy.release.evidence import Reading, pooled, windows
from deploy.release.gates import Judgement, Verdict, judge
from deploy.release.lease import LeaseKeeper
from deploy.release.machine import Event, State, advance
from deploy.release.observe import dropped_text
from deploy.release.parallel import on_each, unexpected
from deploy.release.plan import HostPlan, ReleasePlan
from deploy.release.undo import hold, take_back
from deploy.transport.client import HostClient
from deploy.units import format_size


class SentFiles(Protocol):
    """
    What staging one host sent.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def size(self) -> int: ...  # bytes


Stage = Callable[[HostClient], SentFiles]


class _Stop(Exception):
    """
    The release does not go on: the errors of hosts, or the verdict of a gate.
    """

    def __init__(self, errors: Mapping[str, DeployError], verdict: Judgement | None = None):
        super().__init__("stop")
        self.errors, self.verdict = errors, verdict


class ReleaseExecutor:
    """
    One release, from the lease to its end.

    Args:
        stage: Brings the bundle to one host and returns what it sent.
        recheck: Called under the leases, before anything is touched; raises when the hosts are
            no longer as the plan assumed.
        allow_older: The bundle may be older than the newest release that a host recorded as good.
    """

    def __init__(
        self,
        plan: ReleasePlan,
        *,
        release: str,
        owner: str,
        clients: Mapping[str, HostClient],
        stage: Stage,
        policy: ReleasePolicy,
        limits: host_commands.Limits,
        clock: Clock,
        report: Report,
        recheck: Callable[[], None] = lambda: None,
        allow_older: bool = False,
    ) -> None:
        self._plan, self._release = plan, release
        self._clients = {host.host: clients[host.host] for host in plan.hosts}
        self._stage, self._policy, self._limits = stage, policy, limits
        self._clock, self._report, self._recheck = clock, report, recheck
        self._allow_older = allow_older
        self._keeper = LeaseKeeper(
            self._clients.values(),
            owner=owner,
            release=release,
            ttl_s=policy.lease_ttl,
            clock=clock,
        )
        self._has_started = False
        self.states = {host.host: State.PLANNED for host in plan.hosts}
        self._evidence: dict[str, Any] = {"waves": []}
        self._lock = threading.Lock()  # events come from the threads of all hosts

    def run(self) -> ReleaseOutcome:
        """
        Run the plan and return how it ended; a refusal is an outcome, not an exception.

        Raises:
            LeaseHeld: Another owner is releasing; nothing was touched.
            DeployError: A host could not be reached for its lease; nothing was touched.
        """
        if self._plan.is_noop:
            reason = f"every host serves {self._plan.version} already"
            return ReleaseOutcome(self._release, Ending.NOOP, reason, {})
        with self._keeper:
            self._say("lease.acquired", f"lease on {', '.join(self._clients)}")
            self._recheck()
            permitted = {"permits_older": True} if self._allow_older else {}
            self._record(
                "release.begin",
                bundle=self._plan.bundle,
                version=self._plan.version,
                **permitted,
            )
            try:
                self._promote_all()
            except _Stop as stop:
                outcome = self._take_back(stop)
            except KeyboardInterrupt:
                outcome = self._take_back(_Stop({}, verdicts.interrupted()))
            except Exception as error:  # our bug: take the users back first, then report it
                self._take_back(_Stop({}, verdicts.bug(error)))
                self._record("release.end", outcome=str(Ending.REVERTED), reason=repr(error))
                raise
            else:
                outcome = self._finish()
            self._record("release.end", outcome=str(outcome.ending), reason=outcome.reason)
        self._say(f"release.{outcome.ending}", outcome.reason)
        return outcome

    # -- forward

    def _promote_all(self) -> None:
        self._each(self._clients, State.STAGED, self._stage_one)
        for number, wave in enumerate(self._plan.waves, 1):
            self._each(wave, State.STARTED, self._start_one)
            self._each(wave, State.CANARY, self._canary_one)
            measured = [name for name in wave if self._plan.host(name).has_stable]
            if measured:
                self._judge(number, measured)
            self._each(wave, State.PROMOTED, self._promote_one)

    def _finish(self) -> ReleaseOutcome:
        """
        Retire the old slots; every gate has passed, so an error here takes nothing back.
        """
        errors: Mapping[str, DeployError] = {}
        try:
            self._each(self._clients, State.LIVE, self._retire_one)
        except _Stop as stop:
            errors = stop.errors
        except KeyboardInterrupt:
            errors = {"all hosts": verdicts.interruption()}
        waves = self._evidence["waves"]
        reason = waves[-1]["reason"] if waves else None
        return ReleaseOutcome(
            self._release,
            Ending.PROMOTED,
            reason or "nothing served before: golden answers only, no canary",
            self._evidence | {"hosts": dict(self.states)},
            verdicts.unretired(self._release, errors) if errors else None,
        )

    def _stage_one(self, host: HostPlan, client: HostClient) -> None:
        sent = self._stage(client)
        files = len(sent.names)
        text = (
            f"{files} files sent, {format_size(sent.size)}" if files else "had everything already"
        )
        self._say("host.staged", text, host.host, {"files": files, "bytes": sent.size})

    def _start_one(self, host: HostPlan, client: HostClient) -> None:
        self._has_started = True
        if host.clear_first:
            host_commands.clear(
                client, host.to_slot, host.from_slot, self._limits, is_ready=host.from_ready
            )
            self._say("slot.cleared", f"{host.to_slot}: left over from before", host.host)
        host_commands.start(
            client, host.to_slot, self._plan.bundle, self._limits, allow_older=self._allow_older
        )
        result = host_commands.golden(client, host.to_slot, self._limits)
        text = f"{host.to_slot}: {self._plan.version} is warm, {result.passed} golden answers"
        self._say("slot.started", text, host.host)

    def _canary_one(self, host: HostPlan, client: HostClient) -> None:
        if host.from_slot is None or not host.from_ready:
            return
        pct = self._plan.canary_pct
        weights = {host.from_slot: 100 - pct, host.to_slot: pct}
        self._shifted(host, host_commands.shift(client, weights))

    def _promote_one(self, host: HostPlan, client: HostClient) -> None:
        weights = {host.to_slot: 100, host.other_slot: 0}
        self._shifted(host, host_commands.shift(client, weights))

    def _retire_one(self, host: HostPlan, client: HostClient) -> None:
        client.call(GoodRecord(self._plan.bundle, self._plan.version, host.to_slot))
        if host.stop_other:
            host_commands.stop(client, host.other_slot, self._limits)
            self._say("slot.retired", f"{host.other_slot}: {host.from_version}", host.host)
        retired = client.call(Retire(keep=self._limits.keep), timeout_s=60.0)
        if dropped := dropped_text(retired):
            self._say("bundle.dropped", dropped, host.host)

    # -- judging

    def _judge(self, number: int, wave: list[str]) -> None:
        """
        Measure the canary of *wave* until its gates pass; raise _Stop when they do not.
        """
        canary = self._policy.canary
        histories: dict[str, list[Reading]] = {name: [] for name in wave}
        began_s = self._clock.monotonic_s()
        last_gate = ""
        while True:
            self._read(histories)
            elapsed_s = self._clock.monotonic_s() - began_s
            by_host = windows(histories, self._policy.gates.runtime_restarts.within)
            judgement = judge(by_host, elapsed_s, canary, self._policy.gates)
            if judgement.gate != last_gate:
                self._say("canary.measured", judgement.reason, data={"wave": number})
                last_gate = judgement.gate
            if judgement.verdict is not Verdict.WAIT:
                break
            self._clock.sleep(canary.interval)
        window = pooled(by_host.values())
        self._evidence["waves"].append(
            {
                "wave": number,
                "hosts": wave,
                "canary_pct": self._plan.canary_pct,
                "verdict": str(judgement.verdict),
                "gate": judgement.gate,
                "reason": judgement.reason,
                "requests": window.requests,
                "errors": window.errors,
                "restarts": window.restarts,
                "measured_s": round(elapsed_s, 1),
            }
        )
        event = f"canary.{_PAST[judgement.verdict]}"
        self._say(event, judgement.reason, data={"wave": number})
        if judgement.verdict is not Verdict.PASS:
            raise _Stop({}, judgement)

    def _read(self, histories: Mapping[str, list[Reading]]) -> None:
        def read(host: HostPlan, client: HostClient) -> None:
            now_s = self._clock.monotonic_s()
            histories[host.host].append(host_commands.measure(client, host.to_slot, now_s))

        self._each(histories, None, read)

    # -- back

    def _take_back(self, stop: _Stop) -> ReleaseOutcome:
        """
        Return every host to the release that served before; on a pause, keep the new slots warm.
        """
        is_held = stop.verdict is not None and stop.verdict.verdict is Verdict.PAUSE
        reason = stop.verdict.reason if stop.verdict else verdicts.first(stop.errors)
        self._say("release.stopped", reason)
        for name, state in self.states.items():
            self.states[name] = advance(state, _event_of_stop(stop.errors.get(name), is_held))
        failed = on_each(
            self._clients, lambda name: self._take_back_one(name, stop.errors.get(name))
        )
        for name, error in failed.items():
            if self.states[name] is State.REVERTING:
                self.states[name] = advance(State.REVERTING, _event(error))
            self._say("host.stuck", f"{error.what} ({error.why})", name)
        evidence = self._evidence | {
            "hosts": dict(self.states),
            "errors": {name: e.as_json() for name, e in {**stop.errors, **failed}.items()},
        }
        ending = Ending.PAUSED if is_held else Ending.REVERTED
        if not self._has_started and not failed and verdicts.one_kind(stop.errors):
            error = verdicts.unstarted(self._release, stop.errors)
        else:
            error = verdicts.ended(self._release, reason, stop.verdict, failed, is_held=is_held)
        return ReleaseOutcome(self._release, ending, reason, evidence, error)

    def _take_back_one(self, name: str, error: DeployError | None) -> None:
        host, client, state = self._plan.host(name), self._clients[name], self.states[name]
        if state is State.REVERTING:
            take_back(
                client,
                host,
                self._plan.bundle,
                self._keeper,
                self._limits,
                self._clock,
                self._policy.lease_ttl,
                after_loss=error is not None and _event(error) is Event.LOST,
            )
            self.states[name] = advance(state, Event.DONE)
            self._say("host.reverted", f"{host.from_version or 'nothing'} serves", name)
        elif state is State.HELD and host.from_slot is not None:
            weights = hold(client, host, self._keeper, self._clock, self._policy.lease_ttl)
            self._shifted(host, weights)

    # -- shared parts

    def _each(
        self,
        names: Iterable[str],
        state: State | None,
        work: Callable[[HostPlan, HostClient], None],
    ) -> None:
        """
        Run *work* on all hosts at once; those where it succeeds advance to *state*.

        A host whose lease is lost is not touched: it fails at once.
        """

        def one(name: str) -> None:
            with self._reporting(name):
                self._keeper.check(name)
                work(self._plan.host(name), self._clients[name])
            if state is not None:
                self.states[name] = advance(self.states[name], Event.DONE)
                assert self.states[name] is state

        errors = on_each(names, one)
        if errors:
            raise _Stop(errors)

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """
        Report an error of one host at once, while other hosts still work.
        """
        try:
            yield
        except Exception as error:
            known = error if isinstance(error, DeployError) else unexpected(name, error)
            self._say("host.failed", f"{known.what} ({known.why})", name)
            raise known from error

    def _record(self, step: str, **data: Any) -> None:
        """
        Write an event of the release on every host; on a lost host it cannot be written.
        """
        errors = on_each(
            self._clients, lambda name: host_commands.record(self._clients[name], step, **data)
        )
        for name, error in errors.items():
            self._say("journal.unwritten", f"{step}: {error.why}", name)

    def _shifted(self, host: HostPlan, weights: Mapping[str, int]) -> None:
        versions = {host.to_slot: self._plan.version, host.from_slot: host.from_version}
        shares = {str(versions[slot]): pct for slot, pct in weights.items() if versions.get(slot)}
        text = ", ".join(f"{version} {pct} %" for version, pct in shares.items())
        self._say("traffic.shifted", text, host.host, {"weights": shares})

    def _say(
        self, name: str, text: str, host: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        with self._lock:
            self._report(ReleaseEvent(self._clock.utc(), name, text, host, data or {}))


_PAST = {Verdict.PASS: "passed", Verdict.PAUSE: "paused", Verdict.REVERT: "rejected"}


def _event(error: DeployError) -> Event:
    return Event.LOST if isinstance(error, TransportError | LeaseLost) else Event.FAILED


def _event_of_stop(error: DeployError | None, is_held: bool) -> Event:
    if is_held:
        return Event.INCONCLUSIVE
    return Event.REJECTED if error is None else _event(error)
