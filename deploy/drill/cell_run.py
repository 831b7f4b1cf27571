"""
Runs one cell: a command, a fault at its line, the wait in which nobody helps, another checkout.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.drill.cells import CHECK_S, Cell, CellResult, Recovery, Task
from deploy.drill.checkout import Ended, Operator, must_run, run_task
from deploy.drill.drill_lab import LEASE_S, VERSIONS, DrillLab
from deploy.drill.faults import Fault
from deploy.drill.inject import FREEZE_S, Injector
from deploy.drill.lines import Line, LineMatcher, SeenLine, distinct_lines
from deploy.errors import (
    CommandFailed,
    LeaseHeld,
    NothingToRollBackTo,
    PreconditionError,
    UsageError,
)

WAVE_GAP_S = 1.5  # between the same step in two waves are a start and a canary
LIMIT_S = LEASE_S + CHECK_S
# There is no release before, or none that is open: true reasons where nothing is left to do.
_NOTHING_LEFT = (NothingToRollBackTo.exit_code, PreconditionError.exit_code)
_ROLLBACK_TO = re.compile(r"inv rollback --to ([A-Za-z0-9][A-Za-z0-9._+-]*)")
_ABORT = "abort"
_POLL_S = 0.002
_QUIET_S = 1.2  # two looks at every host
_OPERATOR_S = 120.0  # longest time for a command, faults included
_BOOT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Settled:
    """
    Attributes:
        at_s: When hosts served one version for good; None: not by the end of the wait.
        from_s: When the limit of the hosts began to count.
        operator_end_s: None: the operator's process still ran.
    """

    at_s: float | None
    from_s: float
    operator_end_s: float | None


class CellRunner:
    """
    Runs cells on one lab, one after the other.

    Args:
        first, second: Two checkouts with the same key.
    """

    def __init__(
        self, on: DrillLab, first: Path, second: Path, progress: Callable[[str], None]
    ) -> None:
        self.lab, self.first, self.second = on, first, second
        self._progress = progress
        self.injector = Injector(on, self._second_operator, progress)

    def record(self, task: Task) -> list[Line]:
        """
        Run *task* undisturbed and return the lines at which faults differ.

        Raises:
            CommandFailed: It failed.
        """
        self.bring_base(task)
        follower = self.lab.follower()
        operator = Operator(self.first, self._words(task))
        seen: list[SeenLine] = []
        while operator.is_alive:
            seen += follower.read()
            time.sleep(_POLL_S)
        ended = operator.wait(1.0)
        seen += follower.read()
        if ended.code:
            raise CommandFailed(
                f"inv {task}: exit {ended.code}, without any fault",
                why=ended.progress[-600:],
                fix="inv drill --keep, then the same command by hand",
            )
        return distinct_lines(seen, wave_gap_s=WAVE_GAP_S)

    def run(self, cell: Cell, recovery: str) -> CellResult:
        """
        Run *cell* and return what happened.

        Args:
            recovery: Task of the other checkout afterwards: rollback or resume.
        """
        began_s = time.monotonic()
        old = self.bring_base(cell.task)
        result = self._run(cell, old, recovery)
        return replace(result, took_s=time.monotonic() - began_s)

    def _run(self, cell: Cell, old: str, recovery: str) -> CellResult:
        boots = {name: state.boot_id for name, state in self.lab.states().items() if state}
        operator = self._start_to(cell)
        if isinstance(operator, Ended):
            why = f"the command ended with {operator.code} before: {operator.error_text}"
            problem = why if operator.code else None
            return CellResult(cell, False, operator_exit=operator.code, problem=problem)
        fault_s, fault_at = time.monotonic(), time.time()
        self.injector.inject(cell.fault, cell.line.host, operator)
        settled = self._settle(cell, operator, fault_s, boots)
        problem = None if settled.operator_end_s else "the command did not end"
        operator_exit = None
        if settled.operator_end_s:
            operator_exit = operator.wait(1.0).code
        else:
            operator.kill()
        lost = self.lab.lost(fault_at - 0.5, time.time())
        states = {n: s.text if s else "unknown" for n, s in self.lab.states().items()}
        result = CellResult(
            cell,
            True,
            old=old,
            new=_other(old),
            settled_s=None if settled.at_s is None else max(0.0, settled.at_s - fault_s),
            waited_from_s=settled.from_s - fault_s,
            limit_s=LIMIT_S,
            operator_exit=operator_exit,
            operator_s=settled.operator_end_s and settled.operator_end_s - fault_s,
            states=states,
            versions=self.lab.versions(),
            lost=lost,
            problem=problem,
        )
        self.injector.repair()
        return replace(result, recovery=self._recover(recovery))

    def _start_to(self, cell: Cell) -> Operator | Ended:
        """
        Start the command of *cell*; return it when its line has come, or how it ended before.

        The lease of an operator who died in the cell before is waited for.
        """
        give_up_s = time.monotonic() + LEASE_S + CHECK_S
        if cell.line.step.startswith("stage."):
            self.lab.unstage(_other(self._one_version() or VERSIONS[1]))
        while True:
            follower, matcher = self.lab.follower(), LineMatcher(cell.line)
            operator = Operator(self.first, self._words(cell.task))
            while operator.is_alive:
                if any(matcher.matches(seen) for seen in follower.read()):
                    return operator
                time.sleep(_POLL_S)
            ended = operator.wait(1.0)
            if ended.code != LeaseHeld.exit_code or time.monotonic() > give_up_s:
                return ended
            time.sleep(1.0)

    def _settle(
        self, cell: Cell, operator: Operator, fault_s: float, boots: Mapping[str, str]
    ) -> _Settled:
        """
        Wait until every host serves one version and nothing can change that any more.
        """
        host, operator_end_s = cell.line.host, None
        back_s = fault_s + FREEZE_S if cell.fault is Fault.FREEZE else fault_s
        is_back = not cell.fault.reboots
        last_change_s, last_versions = fault_s, self.lab.versions()
        quiet_since_s: float | None = None
        while True:
            now_s = time.monotonic()
            if operator_end_s is None and not operator.is_alive:
                operator_end_s = now_s
            self.lab.watch()
            states = self.lab.states()
            state = states[host]
            if not is_back and state is not None and state.boot_id != boots.get(host):
                is_back, back_s = True, state.at_s
            versions = self.lab.versions()
            serves = None not in versions.values()
            if not serves or versions != last_versions:
                last_change_s, last_versions = now_s, versions
            is_armed = any(one is None or one.is_armed for one in states.values())
            is_over = is_back and now_s > back_s and operator_end_s is not None
            if is_over and serves and not is_armed:
                quiet_since_s = quiet_since_s or now_s
                if now_s - max(quiet_since_s, last_change_s) > _QUIET_S:
                    from_s = max(fault_s, back_s, operator_end_s or fault_s)
                    return _Settled(last_change_s, from_s, operator_end_s)
            else:
                quiet_since_s = None
            ends = operator_end_s if operator_end_s is not None else fault_s + _OPERATOR_S
            backs = back_s if is_back else fault_s + _BOOT_S
            from_s = max(fault_s, backs, ends)
            if now_s > from_s + LIMIT_S + 2 * _QUIET_S:
                return _Settled(None, from_s, operator_end_s)
            time.sleep(0.05)

    def _recover(self, task: str) -> Recovery:
        """
        Bring the fleet to one version from the other checkout.
        """
        began_s = time.monotonic()
        ended = run_task(self.second, self._words(task))
        fallback = other_way(ended) if task == "resume" else ()
        if fallback:
            ended = run_task(self.second, self.lab.words(*fallback, "--steal", "--yes"))
        versions = self.lab.wait_for_one_version(3.0)
        is_one = len(set(versions.values())) == 1 and None not in versions.values()
        code = 0 if ended.code in _NOTHING_LEFT and is_one else ended.code
        why = ended.error_text if code else ""
        if not is_one:
            shown = {n: s.text if s else "unknown" for n, s in self.lab.states().items()}
            plan = (ended.document.get("evidence") or {}).get("hosts")
            why = f"{why} hosts: {shown}; the command brought: {plan}".strip()
        took_s = time.monotonic() - began_s
        return Recovery(task, code, took_s, versions, why, " ".join(fallback))

    def bring_base(self, task: Task) -> str:
        """
        Bring the fleet to one version, with one to go back to for a rollback; return the version.

        Raises:
            CommandFailed: Neither a rollback nor a release does that.
        """
        version = self._one_version()
        if version is None:
            self._progress(f"lab {self.lab.number}: bringing the fleet to one version")
            run_task(self.first, self._words("rollback"))
            version = self._one_version()
        if version is None:
            self.lab.up(self.first)
            self.injector.prepare()
            version = self._one_version()
        if task is Task.ROLLBACK and version is not None and not self._can_go_back():
            must_run(self.first, self._words(Task.RELEASE), held_s=LEASE_S + CHECK_S)
            version = self._one_version()
        if version is None:
            states = {n: s.text if s else "unknown" for n, s in self.lab.states().items()}
            raise CommandFailed(
                f"lab {self.lab.number}: the fleet does not serve one version",
                why=str(states),
                fix="inv drill --keep, then inv status on its fleet",
            )
        return version

    def _one_version(self) -> str | None:
        versions = self.lab.wait_for_one_version(8.0)
        found = set(versions.values())
        return found.pop() if len(found) == 1 else None

    def _can_go_back(self) -> bool:
        """
        Return whether a plain rollback leads somewhere, and to the same on every host.

        A host that was cut off at the end of a rollback has it unfinished, and one whose staging
        was cut off lacks a version; a release ends both.
        """
        document = run_task(self.first, self.lab.words("status")).document
        if (document.get("release") or {}).get("unfinished"):
            return False
        goods = [host.get("good", ()) for host in document.get("hosts", ())]
        return all(len({good["version"] for good in host}) >= 2 for host in goods)

    def _words(self, task: str) -> list[str]:
        if task == Task.RELEASE:
            return self.release_words()[1]
        # The lease of an operator who died may still be in force.
        return self.lab.words(task, "--steal", "--yes")

    def release_words(self) -> tuple[str, list[str]]:
        """
        Return the version that the fleet does not serve, and the words that release it.
        """
        version = _other(self._one_version() or VERSIONS[1])
        words = ("release", "--version", version, "--allow-older", "--yes")
        return version, self.lab.words(*words)

    def _second_operator(self) -> Operator:
        return Operator(self.second, self._words(Task.ROLLBACK))


def other_way(ended: Ended) -> tuple[str, ...]:
    """
    Return the way back that a refused `inv resume` names, for the reasons that are known.

    The second checkout lacks the bundle, and nothing had been staged; or the rollback of one host
    of two is on record nowhere; or the release was taken back, on some hosts at least.
    """
    if ended.code == UsageError.exit_code and "inv rollback ends the release" in ended.fix:
        return (Task.ROLLBACK,)
    named = _ROLLBACK_TO.search(ended.fix)
    text = ended.error_text
    is_unlike = "no release is open" in text and "hosts differ" in text
    if ended.code == PreconditionError.exit_code and is_unlike and named:
        return (Task.ROLLBACK, "--to", named[1])
    if ended.code == PreconditionError.exit_code and "it was taken back" in text:
        return (Task.ROLLBACK, "--to", named[1]) if named else (_ABORT,)
    return ()


def _other(version: str) -> str:
    return next(one for one in VERSIONS if one != version)
