"""
Runs the hooks of a release: programs of the operator's machine, before and after its phases.

A hook may stop a release from going forward.  No hook can delay a way back: from `going_back` on
nothing is waited for, and what runs is killed.
"""

import json
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deploy.clock import Clock
from deploy.errors import CommandFailed, DeployError, PreconditionError
from deploy.foreign_text import says
from deploy.inventory.schema import Hook, Phase
from deploy.release.events import ReleaseEvent, Report
from deploy.release.hook_process import HookResult, run_program

FOLDER = "hooks"
WAY_BACK_S = 30.0  # the longest that the end of a way back waits for its hooks, all together
_WATCH_S = 0.2
_KILL_S = 3.0  # the longest wait for a killed hook
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "TZ")  # of the operator's environment
_WORDS_MAX = 1000  # characters of a hook's output in an event or an error, its last ones


@dataclass(slots=True)
class _Job:
    """
    The hooks of one phase, which run one after the other.
    """

    hooks: Sequence[Hook]
    document: bytes
    is_cancelled: bool = False
    error: DeployError | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class Hooks:
    """
    The hooks of one release or way back; a context manager that closes at its end.

    All run in one thread, one after the other, in the order of the calls.

    Args:
        root: The repository, whose directory `hooks` has the programs.
        release: Id of the release.
        fleet: Name of the fleet.
        env: The operator's environment; hooks get only PATH, HOME, the user and TZ of it.
        report: Gets the events hook.started, hook.passed, hook.failed and hook.skipped, from the
            hooks' thread.

    Raises:
        PreconditionError: A program is missing or is not one that may be run.
    """

    def __init__(
        self,
        hooks: Sequence[Hook],
        *,
        root: Path,
        release: str,
        fleet: str,
        env: Mapping[str, str],
        report: Report,
        clock: Clock,
    ) -> None:
        self._hooks, self._root = tuple(hooks), root
        self._release, self._fleet = release, fleet
        self._env = {name: env[name] for name in INHERITED if name in env}
        self._report, self._clock = report, clock
        self._jobs: deque[_Job] = deque()  # in order; the first one runs
        self._changed = threading.Condition()
        self._is_going_back = self._is_closed = False
        self._worker: threading.Thread | None = None
        for hook in self._hooks:
            check_program(root, hook.run[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def before(
        self,
        phase: Phase,
        document: Mapping[str, Any],
        *,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Wait until the hooks before *phase* have passed; on a way back, return at once.

        Hooks after earlier phases that still run are waited for, too.

        Args:
            document: The plan, for the hooks' standard input.
            watch: Called every 0.2 s meanwhile; what it raises ends the hook and is raised.

        Raises:
            CommandFailed: A hook failed or did not end in time, or the release goes back meanwhile.
        """
        job = self._submit("before", phase, document)
        if job is None:
            return
        try:
            while not job.ended.wait(_WATCH_S):
                watch()
        except BaseException:
            job.is_cancelled = True
            raise
        if job.error is not None:
            raise job.error

    def after(self, phase: Phase, document: Mapping[str, Any]) -> None:
        """
        Run the hooks after *phase* beside the release; a failure is only reported.

        After `going_back`, only the hooks of ways back run: call it once traffic has been moved.

        Args:
            document: The plan, for the hooks' standard input.
        """
        self._submit("after", phase, document)

    def going_back(self) -> None:
        """
        Kill the hook that runs, drop those that wait, and never again let a hook be waited for.

        Returns at once.
        """
        with self._changed:
            self._is_going_back = True
            self._cancel_all()

    def close(self) -> None:
        """
        Wait for the hooks that still run or wait, then kill them.

        Waits at most their timeouts; on a way back at most 30 s in all.
        """
        with self._changed:
            limit_s = sum(hook.timeout for job in self._jobs for hook in job.hooks) + _KILL_S
            until_s = time.monotonic() + (WAY_BACK_S if self._is_going_back else limit_s)
            self._is_closed = True
            self._changed.notify_all()
        try:
            if self._worker is not None:
                self._worker.join(max(0.0, until_s - time.monotonic()))
        finally:
            with self._changed:
                self._cancel_all()
            if self._worker is not None:
                self._worker.join(_KILL_S)

    def _submit(self, when: str, phase: Phase, document: Mapping[str, Any]) -> _Job | None:
        hooks = [hook for hook in self._hooks if (hook.when, hook.phase) == (when, phase)]
        if not hooks:
            return None
        whole = {
            "release": self._release,
            "fleet": self._fleet,
            "when": when,
            "phase": str(phase),
            "plan": document,
        }
        job = _Job(hooks, json.dumps(whole, default=str).encode())
        with self._changed:
            if self._is_closed or (self._is_going_back and not phase.is_way_back):
                return None
            self._jobs.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="hooks", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job

    def _cancel_all(self) -> None:
        for job in self._jobs:
            job.is_cancelled = True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if not self._jobs:
                    return
                job = self._jobs[0]
            try:
                self._run_all(job)
            except Exception as error:  # our bug: the phase must not wait for ever
                job.error = DeployError(
                    "an internal error of slipway in a hook",
                    why=repr(error),
                    fix="report it with the traceback that --debug prints",
                )
                job.error.__cause__ = error
            finally:
                with self._changed:
                    self._jobs.popleft()
                job.ended.set()

    def _run_all(self, job: _Job) -> None:
        for hook in job.hooks:
            name = _name(hook)
            if job.is_cancelled:
                self._say("hook.skipped", f"{name}: it did not run")
                job.error = job.error or _error(hook, "it did not run: the release goes back", "")
                continue
            self._say("hook.started", name)
            result = self._run(hook, job)
            words = says("it", result.output[-_WORDS_MAX:], limit=4 * _WORDS_MAX)
            if result.problem is None:
                self._say("hook.passed", f"{name}: {result.took_s:.1f} s; {words}")
                continue
            self._say("hook.failed", f"{name}: {result.problem}; {words}")
            job.error = job.error or _error(hook, result.problem, words)
            if hook.when == "before":
                return

    def _run(self, hook: Hook, job: _Job) -> HookResult:
        return run_program(
            [str(self._root / hook.run[0]), *hook.run[1:]],
            stdin=job.document,
            cwd=self._root,
            env=self._env
            | {
                "LC_ALL": "C.UTF-8",
                "SLIPWAY_RELEASE": self._release,
                "SLIPWAY_FLEET": self._fleet,
                "SLIPWAY_PHASE": str(hook.phase),
                "SLIPWAY_WHEN": hook.when,
            },
            timeout_s=hook.timeout,
            is_cancelled=lambda: job.is_cancelled,
        )

    def _say(self, name: str, text: str) -> None:
        self._report(ReleaseEvent(self._clock.utc(), name, text))


def check_program(root: Path, program: str, key: str = "release.hooks") -> None:
    """
    Check that *program*, such as hooks/announce, may be run as a hook.

    Args:
        key: Of the fleet file, that names it.

    Raises:
        PreconditionError: It is missing, no executable file, outside of the directory `hooks`, or
            every user of this machine may change it.
    """
    path = root / program

    def unusable(why: str, fix: str) -> PreconditionError:
        return PreconditionError(f"{key}: {program} cannot be run", why=why, fix=fix)

    try:
        mode = path.stat().st_mode
        is_inside = path.resolve(strict=True).is_relative_to((root / FOLDER).resolve())
    except OSError as error:
        raise unusable(str(error.strerror), f"write {program}, chmod 755") from None
    if not is_inside:
        raise unusable(f"it is a link out of {FOLDER}/", "put the program itself there")
    if not stat.S_ISREG(mode) or not os.access(path, os.X_OK):
        raise unusable("it is not an executable file", f"chmod 755 {program}")
    if mode & stat.S_IWOTH:
        raise unusable("every user may change it", f"chmod o-w {program}")


def _name(hook: Hook) -> str:
    return f"{hook.run[0]} {hook.when} {hook.phase}"


def _error(hook: Hook, problem: str, words: str) -> CommandFailed:
    return CommandFailed(
        f"the hook {_name(hook)} failed",
        why=f"{problem}; {words}" if words else problem,
        fix="do what the hook says, or change release.hooks of the fleet file",
    )
