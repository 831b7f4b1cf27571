"""
Walks a plan: stage, start, canary, judge, promote, retire; or goes back.

The only loop with effects.  Each host's place in its life is kept by `machine.advance`; each
effect is an intent and a result in the journal of the host that it happens on.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deploy.errors import (
    CanaryRejected,
    DeployError,
    LeaseLost,
    ReleasePaused,
    ReleaseReverted,
    RollbackFailed,
    TransportError,
)
from deploy.inventory.schema import ReleasePolicy
from deploy.release import steps
from deploy.release.events import Clock, Ending, Outcome, ReleaseEvent, Report
from deploy.release.gates import Judgement, Reading, Verdict, judge, summed
from deploy.release.lease import LeaseKeeper
from deploy.release.machine import ENDS, Event, State, advance
from deploy.release.plan import HostPlan, ReleasePlan
from deploy.transport.host_tool import HostTool

Stage = Callable[[HostTool], Mapping[str, Any]]


class _Stop(Exception):
    """
    The release does not go on: what each host ran into, or what a gate said.
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
            not any more as the plan assumed.
    """

    def __init__(
        self,
        plan: ReleasePlan,
        *,
        release: str,
        owner: str,
        tools: Mapping[str, HostTool],
        stage: Stage,
        policy: ReleasePolicy,
        limits: steps.Limits,
        clock: Clock,
        report: Report,
        recheck: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan, self._release, self._owner = plan, release, owner
        self._tools = {host.host: tools[host.host] for host in plan.hosts}
        self._stage, self._policy, self._limits = stage, policy, limits
        self._clock, self._report, self._recheck = clock, report, recheck
        self._has_started = False
        self.states = {host.host: State.PLANNED for host in plan.hosts}
        self._evidence: dict[str, Any] = {"waves": []}

    def run(self) -> Outcome:
        """
        Do the plan and return how it ended; a refusal is an outcome, not an exception.

        Raises:
            LeaseHeld: Somebody else is releasing; nothing was touched.
            DeployError: A host could not be reached for its lease; nothing was touched.
        """
        if self._plan.is_noop:
            reason = f"every host serves {self._plan.version} already"
            return Outcome(self._release, Ending.NOOP, reason, {})
        keeper = LeaseKeeper(
            self._tools.values(),
            owner=self._owner,
            release=self._release,
            ttl_s=self._policy.lease_ttl,
        )
        with keeper:
            self._keeper = keeper
            self._say("lease.acquired", f"lease on {', '.join(self._tools)}")
            self._recheck()
            self._record("release.begin", bundle=self._plan.bundle, version=self._plan.version)
            try:
                outcome = self._forward()
            except _Stop as stop:
                outcome = self._back(stop)
            except KeyboardInterrupt:
                outcome = self._back(_Stop({}, _interrupted()))
            except Exception as error:  # a bug of ours: users first, then the traceback
                self._back(_Stop({}, _bug(error)))
                self._record("release.end", outcome=str(Ending.REVERTED), reason=repr(error))
                raise
            self._record("release.end", outcome=str(outcome.ending), reason=outcome.reason)
        self._say(f"release.{outcome.ending}", outcome.reason)
        return outcome

    # -- forward

    def _forward(self) -> Outcome:
        self._each(self._tools, State.STAGED, self._stage_one)
        for number, wave in enumerate(self._plan.waves, 1):
            self._each(wave, State.STARTED, self._start_one)
            self._each(wave, State.CANARY, self._canary_one)
            measured = [name for name in wave if self._plan.host(name).has_stable]
            if measured:
                self._judge(number, measured)
            self._each(wave, State.PROMOTED, self._promote_one)
        error = None
        try:
            self._each(self._tools, State.LIVE, self._retire_one)
        except _Stop as stop:
            # Every gate has passed and every host serves the new release: no reason to go back.
            error = _unretired(self._release, stop.errors)
        except KeyboardInterrupt:
            error = _unretired(self._release, {"all hosts": _interruption()})
        reason = self._evidence["waves"][-1]["reason"] if self._evidence["waves"] else None
        return Outcome(
            self._release,
            Ending.PROMOTED,
            reason or "nothing served before: golden answers only, no canary",
            self._evidence | {"hosts": dict(self.states)},
            error,
        )

    def _stage_one(self, host: HostPlan, tool: HostTool) -> None:
        sent = self._stage(tool)
        self._say("host.staged", _sent(sent), host.host, sent)

    def _start_one(self, host: HostPlan, tool: HostTool) -> None:
        self._has_started = True
        if host.clear_first:
            steps.clear(tool, host.to_slot, host.from_slot, self._limits)
            self._say("slot.cleared", f"{host.to_slot}: left over from before", host.host)
        steps.start(tool, host.to_slot, self._plan.bundle, self._limits)
        found = steps.golden(tool, host.to_slot, self._limits)
        text = f"{host.to_slot}: {self._plan.version} is warm, {found['passed']} golden answers"
        self._say("slot.started", text, host.host)

    def _canary_one(self, host: HostPlan, tool: HostTool) -> None:
        if host.from_slot is None:
            return
        pct = self._plan.canary_pct
        weights = steps.shift(tool, {host.from_slot: 100 - pct, host.to_slot: pct})
        self._shifted(host, weights)

    def _promote_one(self, host: HostPlan, tool: HostTool) -> None:
        weights = {host.to_slot: 100, host.other_slot: 0}
        self._shifted(host, steps.shift(tool, weights))

    def _retire_one(self, host: HostPlan, tool: HostTool) -> None:
        good = {"bundle": self._plan.bundle, "version": self._plan.version, "slot": host.to_slot}
        tool.call("good.record", good)
        if host.stop_other:
            steps.stop(tool, host.other_slot, self._limits)
            self._say("slot.retired", f"{host.other_slot}: {host.from_version}", host.host)
        tool.call("retire", {"keep": self._limits.keep}, timeout_s=60.0)

    # -- judging

    def _judge(self, number: int, wave: list[str]) -> None:
        """
        Measure the canary of *wave* until its gates pass; raise _Stop when they do not.
        """
        canary = self._policy.canary
        histories: dict[str, list[Reading]] = {name: [] for name in wave}
        began_s = self._clock.monotonic_s()
        said = ""
        while True:
            self._read(histories)
            elapsed_s = self._clock.monotonic_s() - began_s
            window = summed(histories, self._policy.gates.runtime_restarts.within)
            found = judge(window, elapsed_s, canary, self._policy.gates)
            if found.gate != said:
                self._say("canary.measured", found.reason, data={"wave": number})
                said = found.gate
            if found.verdict is not Verdict.WAIT:
                break
            self._clock.sleep(canary.interval)
        self._evidence["waves"].append(
            {
                "wave": number,
                "hosts": wave,
                "canary_pct": self._plan.canary_pct,
                "verdict": str(found.verdict),
                "gate": found.gate,
                "reason": found.reason,
                "requests": window.requests,
                "errors": window.errors,
                "restarts": window.restarts,
                "measured_s": round(elapsed_s, 1),
            }
        )
        self._say(f"canary.{_PAST[found.verdict]}", found.reason, data={"wave": number})
        if found.verdict is not Verdict.PASS:
            raise _Stop({}, found)

    def _read(self, histories: Mapping[str, list[Reading]]) -> None:
        def read(host: HostPlan, tool: HostTool) -> None:
            now_s = self._clock.monotonic_s()
            histories[host.host].append(steps.measure(tool, host.to_slot, now_s))

        self._each(histories, None, read)

    # -- going back

    def _back(self, stop: _Stop) -> Outcome:
        """
        Bring every host back to what served before; hold the new slots warm on a pause.
        """
        held = stop.verdict is not None and stop.verdict.verdict is Verdict.PAUSE
        reason = stop.verdict.reason if stop.verdict else _first(stop.errors)
        self._say("release.stopped", reason)
        failed: dict[str, DeployError] = {}

        def back(host: HostPlan, tool: HostTool) -> None:
            error = stop.errors.get(host.host)
            if held:
                event = Event.INCONCLUSIVE
            else:
                event = Event.REJECTED if error is None else _event(error)
            state = self.states[host.host] = advance(self.states[host.host], event)
            try:
                if error is not None and _event(error) is Event.LOST and state not in ENDS:
                    self._keeper.take(tool)
                if state is State.REVERTING:
                    steps.clear(tool, host.to_slot, host.from_slot, self._limits)
                    self.states[host.host] = advance(state, Event.DONE)
                    self._say(
                        "host.reverted", f"{host.from_version or 'nothing'} serves", host.host
                    )
                elif state is State.HELD and host.from_slot is not None:
                    weights = {host.from_slot: 100, host.to_slot: 0}
                    self._shifted(host, steps.shift(tool, weights))
            except DeployError as found:
                failed[host.host] = found
                if state is State.REVERTING:
                    self.states[host.host] = advance(state, _event(found))
                self._say("host.stuck", f"{found.what} ({found.why})", host.host)

        with ThreadPoolExecutor(len(self._plan.hosts)) as pool:
            list(pool.map(lambda h: back(h, self._tools[h.host]), self._plan.hosts))
        evidence = self._evidence | {
            "hosts": dict(self.states),
            "errors": {name: e.as_json() for name, e in {**stop.errors, **failed}.items()},
        }
        ending = Ending.PAUSED if held else Ending.REVERTED
        if not self._has_started and not failed and _one_kind(stop.errors):
            error = _unstarted(self._release, stop.errors)
        else:
            error = _ended(self._release, reason, stop, failed, held=held)
        return Outcome(self._release, ending, reason, evidence, error)

    # -- the small machinery

    def _each(
        self,
        names: Iterable[str],
        state: State | None,
        work: Callable[[HostPlan, HostTool], None],
    ) -> None:
        """
        Do *work* on all hosts at once; those where it succeeds advance to *state*.
        """
        errors: dict[str, DeployError] = {}

        def one(name: str) -> None:
            try:
                work(self._plan.host(name), self._tools[name])
            except DeployError as error:
                errors[name] = error
                self._say("host.failed", f"{error.what} ({error.why})", name)
                return
            if state is not None:
                self.states[name] = advance(self.states[name], Event.DONE)
                assert self.states[name] is state

        names = list(names)
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            list(pool.map(one, names))
        if errors:
            raise _Stop(errors)

    def _record(self, step: str, **data: Any) -> None:
        """
        Write an event of the release on every host; a host that is lost cannot be written to.
        """

        def one(tool: HostTool) -> None:
            try:
                steps.record(tool, step, **data)
            except DeployError as error:
                self._say("journal.unwritten", f"{step}: {error.why}", tool.host)

        with ThreadPoolExecutor(max(1, len(self._tools))) as pool:
            list(pool.map(one, self._tools.values()))

    def _shifted(self, host: HostPlan, weights: Mapping[str, int]) -> None:
        versions = {host.to_slot: self._plan.version, host.from_slot: host.from_version}
        shares = {str(versions[slot]): pct for slot, pct in weights.items() if versions.get(slot)}
        text = ", ".join(f"{version} {pct} %" for version, pct in shares.items())
        self._say("traffic.shifted", text, host.host, {"weights": shares})

    def _say(
        self, name: str, text: str, host: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        self._report(ReleaseEvent(self._clock.utc(), name, text, host, data or {}))


_PAST = {Verdict.PASS: "passed", Verdict.PAUSE: "paused", Verdict.REVERT: "rejected"}


def _event(error: DeployError) -> Event:
    return Event.LOST if isinstance(error, TransportError | LeaseLost) else Event.FAILED


def _bug(error: Exception) -> Judgement:
    return Judgement(Verdict.REVERT, "bug", f"an error of the toolkit itself: {error!r}")


def _interruption() -> DeployError:
    return DeployError("interrupted", why="the operator stopped it", fix="inv release finishes it")


def _one_kind(errors: Mapping[str, DeployError]) -> bool:
    return len({type(error) for error in errors.values()}) == 1


def _unstarted(release: str, errors: Mapping[str, DeployError]) -> DeployError:
    """
    Return the hosts' own kind of error: nothing was started, so nothing was to go back from.
    """
    first = errors[min(errors)]
    return type(first)(
        f"{release}: not released, and nothing was started: {first.what}",
        why=first.why,
        fix=first.fix,
        host=first.host,
    )


def _interrupted() -> Judgement:
    return Judgement(Verdict.REVERT, "operator", "interrupted by the operator")


def _first(errors: Mapping[str, DeployError]) -> str:
    name = min(errors)
    more = f" (and {len(errors) - 1} more hosts)" if len(errors) > 1 else ""
    return f"{errors[name].what}: {errors[name].why}{more}"


def _sent(sent: Mapping[str, Any]) -> str:
    files, size = sent.get("files", 0), sent.get("bytes", 0)
    return f"{files} files sent, {size / 2**20:.1f} MiB" if files else "had everything already"


def _unretired(release: str, errors: Mapping[str, DeployError]) -> DeployError:
    error = TransportError if _event(errors[min(errors)]) is Event.LOST else DeployError
    return error(
        f"{release}: promoted, but not finished on {', '.join(sorted(errors))}",
        why=_first(errors),
        fix="it serves there; inv status when the host answers, then inv release finishes it",
    )


def _ended(
    release: str, reason: str, stop: _Stop, failed: Mapping[str, DeployError], *, held: bool
) -> DeployError:
    """
    Return the error that a release which did not go through ends with.
    """
    if failed:
        hosts = ", ".join(sorted(failed))
        return RollbackFailed(
            f"{release}: could not go back on {hosts}",
            why=f"{reason}; then {_first(failed)}",
            fix="when the host answers again: inv status, then inv rollback",
        )
    if held:
        return ReleasePaused(
            f"{release}: paused",
            why=reason,
            fix="the old release has all the traffic and the new one is warm: look at it, then "
            "inv rollback to drop it or inv release to try again",
        )
    if stop.verdict is not None and stop.verdict.gate != "operator":
        return CanaryRejected(
            f"{release}: the canary was refused",
            why=reason,
            fix="the old release serves everywhere; find the cause in the canary's log: "
            "journalctl -u slipway-runtime@SLOT",
        )
    return ReleaseReverted(
        f"{release}: every host is back on the old release",
        why=reason,
        fix="mend the cause and release again",
    )
