"""
Tells the hooks of the operator which phase a release is in.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from deploy.inventory.schema import Phase
from deploy.release.desired import Ending
from deploy.release.hooks import Hooks
from deploy.release.plan import Step

_PHASES: Mapping[Step, Phase] = MappingProxyType(
    {
        Step.STAGE: Phase.STAGE,
        Step.ARM: Phase.START,
        Step.CLEAR: Phase.START,
        Step.START: Phase.START,
        Step.GOLDEN: Phase.START,
        Step.CANARY: Phase.CANARY,
        Step.JUDGE: Phase.CANARY,
        Step.PROMOTE: Phase.PROMOTE,
        Step.BAKE: Phase.BAKE,
        Step.CHECK: Phase.CONFIRM,
        Step.CONFIRM: Phase.CONFIRM,
        Step.RETIRE: Phase.RETIRE,
    }
)


class Phases:
    """
    The phase that a release is in; without hooks nothing happens.

    Args:
        describe: Returns what hooks get to read; called when some are about to run.
    """

    def __init__(self, hooks: Hooks | None, describe: Callable[[], Mapping[str, Any]]) -> None:
        self._hooks, self._describe = hooks, describe
        self._now: tuple[Phase, int] | None = None
        self._way_back: Phase | None = None

    def begin(self, way_back: Phase | None) -> None:
        """
        Begin a release, or a way back that an operator asked for.

        Raises:
            CommandFailed: A hook refuses the release.
        """
        if self._hooks is None:
            return
        if way_back is not None:
            self.go_back(way_back)
        else:
            self._hooks.before(Phase.RELEASE, self._describe())

    def enter(self, step: Step, wave: int) -> None:
        """
        Run the hooks between the phase before and that of *step*.

        Raises:
            CommandFailed: A hook refuses the phase.
        """
        phase = _PHASES.get(step)
        if self._hooks is None or self._way_back is not None or phase is None:
            return
        if self._now == (phase, wave):
            return
        self._leave()
        self._hooks.before(phase, self._describe())
        self._now = (phase, wave)

    def go_back(self, phase: Phase) -> None:
        """
        From now on no hook is waited for.
        """
        if self._hooks is not None:
            self._way_back = self._way_back or phase
            self._hooks.going_back()

    def end(self, ending: Ending | None) -> None:
        """
        Run the hooks after the end, and wait for them within their bounds.
        """
        if self._hooks is None:
            return
        if self._way_back is not None:
            self._hooks.after(self._way_back, self._describe())
        elif ending is not None:
            self._leave()
            self._hooks.after(Phase.RELEASE, self._describe())
        self._hooks.close()

    def _leave(self) -> None:
        if self._hooks is not None and self._now is not None:
            self._hooks.after(self._now[0], self._describe())
            self._now = None
