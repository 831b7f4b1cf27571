"""
The one loop with effects: observe, decide, act, record.

A release, a rollback, an abort, a promotion, a pause and a resumption are desired states; this loop
brings the hosts there.  Nothing that matters lives only in it: whoever dies here, the hosts go back
by themselves, and the next operator reads the desired state and goes on.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deploy.clock import Clock
from deploy.errors import DeployError, LeaseHeld, LeaseLost, TransportError
from deploy.foreign_text import listed
from deploy.host.layout import SLOTS
from deploy.inventory.schema import Phase
from deploy.leases.keeper import LeaseKeeper
from deploy.release import endings, host_commands, verdicts
from deploy.release.decide import decide, is_confirmed
from deploy.release.desired import Desired, Ending, Goal, Ruling
from deploy.release.events import ReleaseEvent, ReleaseOutcome, Report
from deploy.release.gates import Judgement, Verdict
from deploy.release.hooks import Hooks
from deploy.release.host_actions import HostActions, Stage
from deploy.release.host_commands import Limits
from deploy.release.observe import ANSWER_WITHIN_S, Observed, look
from deploy.release.phases import Phases
from deploy.release.plan import Action, HostPlan, Kind, Step
from deploy.release.store import Known, StateStore
from deploy.release.wave_measurement import WaveMeasurement
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each, unexpected

_PAUSE_S = 1.0  # between two attempts of a way back
_REPEATS = 3  # of an action that a host says it did, and does not show


class TakenOver(Exception):
    """
    Another operator has begun since: nothing more is done here.
    """


@dataclass(frozen=True, slots=True)
class Recheck:
    """
    What was found under the leases, before anything is touched.

    Attributes:
        errors: Of hosts that are no longer as the plan assumed, also where it has nothing to do.
        seen: The hosts as they are, for the first decision; none: they are looked at for it.
    """

    errors: Mapping[str, DeployError] = field(default_factory=dict)
    seen: Mapping[str, Observed] = field(default_factory=dict)


class Controller:
    """
    Brings a fleet to a desired state, under an epoch that it wins first.

    Args:
        desired: What to bring about; epoch and number are set here.
        clients: All hosts of the fleet.
        stage: Brings the bundle to one host and returns what it sent.
        limits: Time limits of the calls to hosts.
        recheck: Called under the leases, before anything is touched; raises where what it finds
            ends everything.
        known: Hosts that were observed just now, or their errors: they are not asked again for
            their leases.
        steal: Take over from an operator who is at work.
        left_out: Hosts that the plan cannot bring there, for the end.
        hooks: Programs of the operator that run between the phases.
        stop_traffic: Of these, those whose traffic is taken off once another host has arrived.
    """

    def __init__(
        self,
        desired: Desired,
        *,
        store: StateStore,
        keeper: LeaseKeeper,
        clients: Mapping[str, HostClient],
        stage: Stage,
        limits: Limits,
        clock: Clock,
        report: Report,
        recheck: Callable[[], Recheck] = Recheck,
        known: Known | None = None,
        steal: bool = False,
        left_out: Mapping[str, DeployError] | None = None,
        hooks: Hooks | None = None,
        stop_traffic: Collection[str] = (),
    ) -> None:
        self.desired = desired
        self._plan = desired.plan
        self._rules = desired.plan.rules
        self._store, self._keeper = store, keeper
        self._all_clients = clients
        self._clients = {h.host: clients[h.host] for h in self._plan.hosts if h.host in clients}
        self._clock = clock
        self._report, self._recheck, self._known = report, recheck, known
        self._rechecked: Mapping[str, Observed] = {}  # until the first decision
        self._phases = Phases(hooks, self._document)
        self._actions = HostActions(desired, stage, limits, self._say)
        self._steal = steal
        self._stop_traffic = stop_traffic
        self._began_as_way_back = desired.is_way_back
        self._done: set[tuple[Step, str]] = set()
        self._tries: dict[tuple[Step, str], int] = {}
        self._until_s: dict[str, float] = {}  # when to give up a host that does not go back
        self._changed: set[str] = set()  # hosts that this operator has changed
        self._unsure: set[str] = set()  # hosts whose lease is taken again before the next change
        self._behind: set[str] = set()  # hosts that failed and are left out, to be taken back
        self._is_decided = False  # a host was told to keep the release: no way back any more
        self._is_over = False  # nothing more can be done
        self._errors = dict(left_out or {})  # of hosts that could not be brought there
        self._cause: dict[str, DeployError] = {}  # why the goal was turned
        self._judgement: Judgement | None = None
        self._lock = threading.Lock()  # events come from the threads of all hosts

    def run(self) -> ReleaseOutcome:
        """
        Bring the fleet there and return how it ended; a refusal is an outcome, not an exception.

        Raises:
            LeaseHeld: Another operator is at work; nothing was touched.
            LeaseLost: Another operator took over; nothing more was done here.
            DeployError: The hosts could not be leased; nothing was touched.
        """
        try:
            epoch = self._store.acquire(
                steal=self._steal, is_way_back=self._began_as_way_back, known=self._known
            )
            self.desired = replace(self.desired, epoch=epoch, number=0)
            if self._store.unavailable is not None:
                error = self._store.unavailable
                self._say("state.unavailable", f"{error.what}: {error.why}; {error.fix}")
            self._say("lease.acquired", f"epoch {epoch}, leases of {listed(self._held)}")
            if self._began_as_way_back:
                refused = self._store.refused
                self._leave_out({n: e for n, e in refused.items() if n in self._clients})
            else:
                self._refuse_without_leases()
            now = self._recheck()
            self._leave_out(now.errors)
            self._rechecked = now.seen
            self._phases.begin(self._way_back)
            self._write()
            self._record("release.begin", **endings.begin_data(self.desired))
            self._run()
            self._stop_left_behind()
            outcome = self._end()
        except TakenOver as taken:
            raise endings.taken_over(self.desired.release, taken) from taken.__cause__
        finally:
            self._store.release()
        self._say(f"release.{outcome.ending}", outcome.reason)
        return outcome

    # -- the loop

    def _run(self) -> None:
        """
        Go round until nothing is left to do.
        """
        while not self._is_over:
            try:
                self._go_round()
            except TakenOver:
                raise
            except KeyboardInterrupt:
                self._interrupted()
            except DeployError as error:  # of the store: too few hosts answer
                if not self._can_turn:
                    raise
                self._cause[error.host or "the fleet"] = error
                self._turn(Goal.BACK, f"{error.what}: {error.why}")
            except Exception as error:  # our bug: take the users back first, then report it
                if not self._can_turn:
                    raise
                self._judgement = verdicts.bug(error)
                self._turn(Goal.BACK, self._judgement.reason)
                self._run()
                self._end()
                raise

    def _go_round(self) -> None:
        """
        Do what is next; where a way back has only late hosts left, give them more time.
        """
        if not self._follow(self._observe(self._within_s)):
            self._clock.sleep(_PAUSE_S)
            self._follow(self._observe(None))

    def _follow(self, seen: Mapping[str, Observed]) -> bool:
        """
        Do what follows from *seen*; False where only hosts that did not answer are left.
        """
        if self.desired.goal is Goal.FORWARD:  # an operator before may have died in between
            self._is_decided |= any(is_confirmed(self.desired, one) for one in seen.values())
        decision = decide(self.desired, seen, self._done)
        if decision.measure is not None:
            step = Step.JUDGE if decision.measure else Step.BAKE
            self._phases.enter(step, decision.measure)
            with self._saying_what_runs(step, None):
                self._measure(decision.measure)
        elif decision.actions:
            first = decision.actions[0]
            self._phases.enter(first.step, first.wave)
            self._act(decision.actions)
        elif self._waits_for(seen):
            return False
        elif decision.ending is not None:
            self._is_over = True
            # A rollback that failed stays open: the next plain one goes to the same place.
            if not self._has_failed:
                self.desired = replace(self.desired, ending=decision.ending)
        return True

    @property
    def _has_failed(self) -> bool:
        """
        Return whether it is a rollback that did not bring every host there.
        """
        return self._plan.kind is Kind.ROLLBACK and bool(self._errors)

    def _document(self) -> dict[str, Any]:
        """
        Return what hooks get to read.
        """
        return {
            "version": self._plan.version,
            "bundle": self._plan.bundle,
            "goal": str(self.desired.goal),
            "reason": self.desired.reason,
            "ending": str(self.desired.ending) if self.desired.ending else None,
            "digest": self._plan.digest,
            "waves": [list(wave) for wave in self._plan.waves],
            "actions": [asdict(action) for action in self._plan.actions],
        }

    @property
    def _way_back(self) -> Phase | None:
        if self._plan.kind is Kind.ROLLBACK:
            return Phase.ROLLBACK
        return None if self.desired.goal is Goal.FORWARD else Phase.ABORT

    @property
    def _within_s(self) -> float | None:
        """
        Return how long each host may take to answer, in seconds; None: as long as its call may.

        A way back acts on the hosts that answer, and does not wait for the others.
        """
        return ANSWER_WITHIN_S if self.desired.is_way_back else None

    @property
    def _can_turn(self) -> bool:
        return not (self.desired.is_way_back or self._is_decided)

    def _observe(self, within_s: float | None) -> dict[str, Observed]:
        """
        Return what the hosts of the plan look like; one that does not answer in time is lost.
        """
        left_out = {*self.desired.left_out} - self._behind
        unasked = {*self._errors, *(() if self.desired.is_way_back else left_out)}
        asked = {n: c for n, c in self._clients.items() if n not in unasked}
        rechecked, self._rechecked = self._rechecked, {}
        errors: Mapping[str, DeployError] = {}
        if rechecked.keys() >= asked.keys():
            seen = {name: rechecked[name] for name in asked}
        else:
            seen, errors = look(asked, within_s=within_s)
        self._refuse_newer(seen)
        if errors:
            self._failed(errors, is_hasty=within_s is not None)
        return seen

    def _act(self, actions: tuple[Action, ...]) -> None:
        """
        Do *actions*, hosts at the same time, those of one host in their order.
        """
        chains: dict[str, list[Action]] = {}
        for action in actions:
            assert action.host is not None
            chains.setdefault(action.host, []).append(action)

        def one(name: str) -> None:
            with self._reporting(name):
                if name in self._unsure or name not in self._keeper.held:
                    self._retake(name)
                for action in chains[name]:
                    self._keeper.check(name)
                    self._do(action, self._plan.host(name), self._clients[name])

        self._is_decided |= any(a.step in (Step.CONFIRM, Step.RETIRE) for a in actions)
        is_way_back = not self._can_turn
        errors = on_each(chains, one)
        if errors:
            self._failed(errors)
            if is_way_back:
                self._clock.sleep(_PAUSE_S)

    def _leave_out(self, errors: Mapping[str, DeployError]) -> None:
        """
        Go on without some hosts: on a way back none waits for another.
        """
        for name, error in errors.items():
            self._errors[name] = error
            self._say("host.failed", f"{error.what} ({error.why})", name)
        # One that the plan has nothing to do on is brought by whoever goes on with it.
        unplanned = {name: one for name, one in errors.items() if name not in self._clients}
        self.desired = self.desired.without(endings.reasons(unplanned))

    def _refuse_without_leases(self) -> None:
        """
        Raise where more hosts of the plan gave no lease than the policy lets be unavailable.
        """
        refused = {n: e for n, e in self._store.refused.items() if n in self._clients}
        held = [error for error in refused.values() if isinstance(error, LeaseHeld)]
        if held:
            raise held[0]
        if len(refused) > self._rules.max_unavailable or len(refused) == len(self._clients):
            raise refused[min(refused)]
        self._cause.update(refused)
        self.desired = self.desired.without(endings.reasons(refused))

    def _retake(self, name: str) -> None:
        """
        Take a lost lease again: the host then refuses a command of the old one that comes late.
        """
        if self._can_turn:
            self._keeper.check(name)
            raise LeaseLost(
                f"{name}: no lease is held there",
                why="it did not give one when the release began",
                fix="inv status shows the host when it answers again",
                host=name,
            )
        self._keeper.take(name)
        self._unsure.discard(name)

    def _failed(self, errors: Mapping[str, DeployError], *, is_hasty: bool = False) -> None:
        """
        Decide what the errors of hosts mean for the release.

        Args:
            is_hasty: They had less than the full time of their calls.
        """
        self._refuse_if_taken_over(errors)
        # A command may still run there, or begin later, because its connection was lost.
        self._unsure.update(name for name, error in errors.items() if _is_lost(error))
        if self._can_turn:
            self._failed_forward(errors)
        else:
            self._failed_back(errors, is_hasty=is_hasty)

    def _failed_forward(self, errors: Mapping[str, DeployError]) -> None:
        for name in self._behind & errors.keys():
            # It goes back by itself when its lease is over.
            self._behind.discard(name)
            self._keeper.forget(name)
        errors = {n: e for n, e in errors.items() if n not in self.desired.left_out}
        if not errors:
            return
        lost = {n for n, e in {**self._cause, **errors}.items() if _is_lost(e)}
        failed = {n for n in {**self._cause, **errors} if n not in lost}
        self._cause.update(errors)
        left = len(self._plan.hosts) - len(self._cause)
        is_within = (
            len(lost) <= self._rules.max_unavailable and len(failed) <= self._rules.failure_budget
        )
        if is_within and left > 0:
            reasons = endings.reasons(errors)
            for name, reason in reasons.items():
                self._say("host.left_out", reason, name)
            self._behind |= errors.keys() & failed & self._keeper.held
            self.desired = self.desired.without(reasons)
            self._write()
            return
        self._turn(Goal.BACK, verdicts.first(errors))

    def _failed_back(self, errors: Mapping[str, DeployError], *, is_hasty: bool) -> None:
        """
        Try again until the time to live of a lease is over; then the host's own way back has it.
        """
        now_s = self._clock.monotonic_s()
        for name, error in errors.items():
            until_s = self._until_s.setdefault(name, now_s + self._keeper.ttl_s)
            # One that another operator has taken over is that operator's.
            if (now_s >= until_s and not is_hasty) or isinstance(error, LeaseHeld):
                self._errors[name] = error
                self._say("host.stuck", f"{error.what} ({error.why})", name)

    def _waits_for(self, seen: Mapping[str, Observed]) -> bool:
        """
        Return whether a host that has to be brought somewhere has not answered yet.
        """
        if self._can_turn:
            return False
        if not self.desired.is_way_back:  # it goes on without some, and asks them no more
            mine = set(self._clients) - set(self.desired.left_out)
        else:
            # Of a release that turned round here, what it has changed is known.
            mine = set(self._clients) if self._began_as_way_back else self._changed
        return any(name not in seen and name not in self._errors for name in mine)

    def _refuse_if_taken_over(self, errors: Mapping[str, DeployError]) -> None:
        if not any(isinstance(error, LeaseLost) for error in errors.values()):
            return
        seen, _ = look(self._clients, within_s=ANSWER_WITHIN_S)
        self._refuse_newer(seen)

    def _refuse_newer(self, seen: Mapping[str, Observed]) -> None:
        """
        Raise where most hosts have seen a newer epoch: one alone does not end a release.
        """
        newer = {n: seen[n] for n in sorted(seen) if seen[n].epoch > self.desired.epoch}
        if 2 * len(newer) > len(self._clients):
            epoch = max(current.epoch for current in newer.values())
            owners = {c.lease_owner for c in newer.values() if c.lease_owner}
            by = f" of {', '.join(sorted(owners))}" if owners else ""
            raise TakenOver(f"{', '.join(newer)}: epoch {epoch}{by} is newer than ours")

    def _interrupted(self) -> None:
        if self._plan.kind is Kind.ROLLBACK:
            raise endings.interrupted_rollback(self.desired.release)
        if self.desired.goal is Goal.BACK or self._began_as_way_back:
            raise endings.interrupted_way_back(self.desired.release)
        if self._is_decided:
            self._errors["all hosts"] = verdicts.interruption()
            self.desired = replace(self.desired, ending=Ending.PROMOTED)
            self._is_over = True
            return
        self._judgement = verdicts.interrupted()
        self._turn(Goal.BACK, self._judgement.reason)

    def _turn(self, goal: Goal, reason: str) -> None:
        """
        Change what is wanted; written to the hosts before the first step there, where they can.
        """
        self._phases.go_back(Phase.REVERT)
        self._say("release.stopped", reason)
        self.desired = self.desired.turned(goal, reason)
        self._done.clear()
        self._tries.clear()
        self._write()

    def _do(self, action: Action, host: HostPlan, client: HostClient) -> None:
        key = (action.step, host.host)
        if self._tries.get(key, 0) >= _REPEATS:
            raise endings.not_shown(host.host, action)
        if action.step is not Step.STAGE:
            self._changed.add(host.host)
        with self._saying_what_runs(action.step, host.host, action.deadline_s):
            self._actions.do(action.step, host, client)
        self._tries[key] = self._tries.get(key, 0) + 1
        if action.step in _DONE_ONCE:
            self._done.add(key)

    # -- measuring

    def _measure(self, wave: int) -> None:
        """
        Measure until a verdict on *wave*, or on all hosts, is on record.

        Hosts that have been promoted are measured beside the canary of a later wave.
        """
        names = [n for n in self._clients if n not in self.desired.left_out]
        measurement = WaveMeasurement(self.desired, names, wave)
        began_s = self._clock.monotonic_s()
        last_gate = ""
        while True:
            if not self._read(measurement):
                return  # a host failed: the release goes on without it, or back
            elapsed_s = self._clock.monotonic_s() - began_s
            judgement = measurement.judge(elapsed_s)
            if judgement.gate != last_gate:
                self._say("canary.measured", judgement.reason, data={"wave": wave})
                last_gate = judgement.gate
            if judgement.verdict is not Verdict.WAIT:
                break
            self._clock.sleep(self._rules.canary.interval)
        self._rule(judgement, measurement.ruling(judgement, elapsed_s))

    def _read(self, measurement: WaveMeasurement) -> bool:
        """
        Add a reading of each host to *measurement*; False where one could not be read.
        """

        def one(name: str) -> None:
            with self._reporting(name):
                self._keeper.check(name)
                now_s = self._clock.monotonic_s()
                measurement.add(name, host_commands.measure(self._clients[name], now_s))

        errors = on_each(measurement.hosts, one)
        if errors:
            self._failed(errors)
        return not errors

    def _rule(self, judgement: Judgement, ruling: Ruling) -> None:
        """
        Put the verdict on record, and on a refusal turn round.
        """
        self.desired = self.desired.ruled(ruling)
        past, wave = _PAST[judgement.verdict], ruling.wave
        self._say(f"canary.{past}", judgement.reason, data={"wave": wave})
        if judgement.verdict is Verdict.PASS:
            self._write()
            return
        self._judgement = judgement
        goal = Goal.HELD if judgement.verdict is Verdict.PAUSE else Goal.BACK
        self._turn(goal, judgement.reason)

    # -- the end

    def _stop_left_behind(self) -> None:
        """
        Take the traffic off hosts that serve what the fleet has left, where others serve.
        """
        if all(name in self._errors for name in self._clients):
            return

        def one(name: str) -> None:
            host_commands.shift(self._all_clients[name], dict.fromkeys(SLOTS, 0), force=True)
            self._say("traffic.shifted", "none: it serves what the fleet has left", name)

        names = [name for name in self._stop_traffic if name in self._keeper.held]
        for name, error in on_each(names, one).items():
            self._say("host.failed", f"{error.what} ({error.why})", name)

    def _end(self) -> ReleaseOutcome:
        """
        Record how it ended, on the hosts too, and return it.
        """
        outcome = endings.outcome(
            self.desired,
            self._states(),
            self._cause,
            self._errors,
            self._judgement,
            has_started=bool(self._changed),
        )
        with suppress(DeployError):  # the hosts' own records say the same
            self._write()
        self._phases.end(self.desired.ending)
        self._record(
            "release.end",
            outcome="failed" if self._has_failed else str(outcome.ending),
            reason=outcome.reason,
            evidence=dict(outcome.evidence),
        )
        return outcome

    def _states(self) -> dict[str, str]:
        """
        Return one word for how each host of the plan ended.
        """
        words = {
            Ending.PROMOTED: "live",
            Ending.ROLLED_BACK: "live",
            Ending.PAUSED: "held",
            Ending.REVERTED: "reverted",
        }
        word = words.get(self.desired.ending or Ending.REVERTED, "reverted")
        states = dict.fromkeys(self._clients, word)
        states |= dict.fromkeys(self.desired.left_out, "left_out")
        failed = "promoted" if self.desired.ending is Ending.PROMOTED else "stuck"
        return states | {name: failed for name in self._errors if name in states}

    # -- shared parts

    @property
    def _held(self) -> list[str]:
        return [name for name in self._all_clients if name in self._keeper.held]

    def _write(self) -> None:
        """
        Store the desired state; going forward needs it, a way back does without.

        Raises:
            LeaseLost, TransportError: Another operator has begun, or too few hosts answer.
        """
        self.desired = replace(self.desired, number=self.desired.number + 1)
        try:
            self._store.write(self.desired)
        except DeployError as error:
            self._refuse_if_taken_over({error.host: error} if error.host else {})
            if self._can_turn:
                raise
            self._say("state.unwritten", f"{error.what}: {error.why}")

    def _record(self, step: str, **data: Any) -> None:
        """
        Write an event of the release on every host; on a lost host it cannot be written.
        """
        names = [name for name in self._clients if name in self._keeper.held]
        errors = on_each(
            names,
            lambda name: host_commands.record(self._clients[name], step, **data),
            within_s=self._within_s,
        )
        for name, error in errors.items():
            self._say("journal.unwritten", f"{step}: {error.why}", name)

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """
        Report an error of one host at once, while other hosts still work.
        """
        lost_before = self._keeper.loss_of(name)
        try:
            yield
        except Exception as error:
            known = error if isinstance(error, DeployError) else unexpected(name, error)
            lost = self._keeper.loss_of(name)
            if isinstance(known, TransportError) and lost is not None and lost is not lost_before:
                known = lost  # it closed the connection under the command
            self._say("host.failed", f"{known.what} ({known.why})", name)
            raise known from error

    @contextmanager
    def _saying_what_runs(
        self, step: Step, host: str | None, deadline_s: float | None = None
    ) -> Iterator[None]:
        self._say("action.started", step, host, {"step": str(step), "deadline_s": deadline_s})
        try:
            yield
        finally:
            self._say("action.ended", step, host, {"step": str(step)})

    def _say(
        self, name: str, text: str, host: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        with self._lock:
            self._report(ReleaseEvent(self._clock.utc(), name, text, host, data or {}))


_PAST = {Verdict.PASS: "passed", Verdict.PAUSE: "paused", Verdict.REVERT: "rejected"}
_DONE_ONCE = frozenset({Step.STAGE, Step.START, Step.GOLDEN, Step.CHECK, Step.RETIRE})


def _is_lost(error: DeployError) -> bool:
    return isinstance(error, TransportError | LeaseLost)
