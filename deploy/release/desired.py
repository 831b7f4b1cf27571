"""
What the fleet should be: a small document that every host holds, and any operator can go on with.

Values only.  A release, a rollback, an abort, a promotion, a pause and a resumption differ only in
the desired state that they write; `decide` says what follows from it.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from deploy.release.gates import Verdict
from deploy.release.plan import FLEET, Kind, ReleasePlan


class Goal(StrEnum):
    FORWARD = "forward"  # every host serves the plan's release
    HELD = "held"  # every host serves what it did before; the new slots stay warm
    BACK = "back"  # every host serves what it did before, alone


class Ending(StrEnum):
    PROMOTED = "promoted"
    REVERTED = "reverted"  # a release that went back
    ROLLED_BACK = "rolled_back"  # a rollback that did what was asked
    PAUSED = "paused"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class Ruling:
    """
    The verdict on a wave, on record before the next step.

    Attributes:
        wave: From 1; FLEET: the last measurement of all hosts.
        verdict: As `gates.Verdict`.
        gate: The rule that decided, or "operator".
        requests, errors, restarts: Of the canary, over the measurement.
    """

    wave: int
    hosts: tuple[str, ...]
    verdict: str
    gate: str
    reason: str
    requests: int
    errors: int
    restarts: int
    measured_s: float


@dataclass(frozen=True)
class Desired:
    """
    Attributes:
        release: Id of the release or rollback.
        actor: Who wrote this.
        reason: Why the goal is what it is; empty while it is what the plan says.
        rulings: Verdicts so far.
        left_out: Hosts that this release goes on without, and why.
        ending: How it ended; None: it has not.
        epoch, number: Stamp under which it was written.
    """

    release: str
    actor: str
    goal: Goal
    plan: ReleasePlan
    reason: str = ""
    rulings: tuple[Ruling, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    ending: Ending | None = None
    epoch: int = 0
    number: int = 0

    @property
    def is_way_back(self) -> bool:
        """
        Return whether it leads back: a rollback, or a release that is aborted, paused or refused.
        """
        return self.plan.kind is Kind.ROLLBACK or self.goal is not Goal.FORWARD

    @property
    def is_open(self) -> bool:
        """
        Return whether somebody has to go on with it.
        """
        return self.ending in (None, Ending.PAUSED)

    @property
    def can_resume(self) -> bool:
        """
        Return whether `inv resume` goes on with it: it is open, or ended well without some hosts.

        One that goes back or was reverted never goes forward again: a gate or an operator refused
        it.
        """
        if self.goal is Goal.BACK:
            return False
        is_good = self.ending in (Ending.PROMOTED, Ending.ROLLED_BACK)
        return self.is_open or (is_good and bool(self.left_out))

    @property
    def can_abort(self) -> bool:
        """
        Return whether `inv abort` takes it back: it is open, and no way back by itself.
        """
        return self.is_open and self.plan.kind is Kind.RELEASE

    def renewed(self, actor: str) -> "Desired":
        """
        Return the release as *actor* goes on with it: with the waves that have passed.
        """
        passed = tuple(ruling for ruling in self.rulings if ruling.verdict == Verdict.PASS)
        return Desired(self.release, actor, Goal.FORWARD, self.plan, rulings=passed)

    def passed(self, wave: int) -> bool:
        """
        Return whether *wave* was measured, or let through by an operator.
        """
        return any(
            ruling.wave == wave and ruling.verdict == Verdict.PASS for ruling in self.rulings
        )

    def turned(self, goal: Goal, reason: str) -> "Desired":
        return replace(self, goal=goal, reason=reason)

    def ruled(self, ruling: Ruling) -> "Desired":
        return replace(self, rulings=(*self.rulings, ruling))

    def without(self, hosts: dict[str, str]) -> "Desired":
        return replace(self, left_out={**self.left_out, **hosts})

    @property
    def next_wave(self) -> int | None:
        """
        Return the wave that waits for its verdict; FLEET: the last measurement; None: none does.
        """
        for number, wave in enumerate(self.plan.waves, 1):
            measured = any(self.plan.host(name).has_stable for name in wave)
            if measured and not self.passed(number):
                return number
        return FLEET if self.plan.is_measured and not self.passed(FLEET) else None
