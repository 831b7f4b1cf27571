"""
What was read of the hosts of a wave, and the judgement on it.  Pure.
"""

from collections.abc import Mapping

from deploy.release.desired import Desired, Ruling
from deploy.release.evidence import History, Reading, pooled, windows
from deploy.release.gates import Judgement, Verdict, judge, judge_promoted
from deploy.release.plan import FLEET


class WaveMeasurement:
    """
    Of the canary of one wave, beside it of hosts that have been promoted; or of all hosts.

    Args:
        names: Hosts that the release goes on with.
        wave: Number of the wave from 1; FLEET: all hosts have been promoted.

    Attributes:
        hosts: All that are read.
        judged: Those that the verdict is on.
    """

    def __init__(self, desired: Desired, names: list[str], wave: int) -> None:
        plan = desired.plan
        canaries = plan.waves[wave - 1] if wave else ()
        of_wave = [n for n in canaries if n in names and plan.host(n).has_stable]
        self._promoted = [n for n in names if wave == FLEET or plan.wave_of(n) < wave]
        self._plan, self._rules, self._wave = plan, plan.rules, wave
        self._histories: dict[str, History] = {n: History() for n in (*of_wave, *self._promoted)}
        self._stable: dict[str, History] = {name: History() for name in of_wave}
        self.hosts = tuple(self._histories)
        self.judged = tuple(of_wave or self._promoted)

    def add(self, name: str, readings: Mapping[str, Reading]) -> None:
        """
        Add what the slots of the host *name* counted, all at one moment.
        """
        host = self._plan.host(name)
        self._histories[name].append(readings[host.to_slot])
        if name in self._stable:
            self._stable[name].append(readings[host.other_slot])

    def judge(self, elapsed_s: float) -> Judgement:
        """
        Return what the gates say after *elapsed_s* of measuring.
        """
        gates, canary = self._rules.gates, self._rules.canary
        within_s = gates.runtime_restarts.within
        if self._promoted:
            by_host = windows({n: self._histories[n] for n in self._promoted}, within_s)
            judgement = judge_promoted(by_host, elapsed_s, canary, gates)
            if judgement.verdict in (Verdict.REVERT, Verdict.PAUSE) or not self._stable:
                return judgement
        of_wave = {name: self._histories[name] for name in self._stable}
        by_host = windows(of_wave, within_s, stable=self._stable)
        return judge(by_host, elapsed_s, canary, gates, share_pct=self._plan.canary_pct)

    def ruling(self, judgement: Judgement, elapsed_s: float) -> Ruling:
        """
        Return *judgement* with its numbers, for the record.
        """
        judged = {name: self._histories[name] for name in self.judged}
        window = pooled(windows(judged, self._rules.gates.runtime_restarts.within).values())
        return Ruling(
            wave=self._wave,
            hosts=self.judged,
            verdict=str(judgement.verdict),
            gate=judgement.gate,
            reason=judgement.reason,
            requests=window.requests,
            errors=window.errors,
            restarts=window.restarts,
            measured_s=round(elapsed_s, 1),
        )
