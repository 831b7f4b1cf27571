"""
Decides when a host is given up whose changes do not last.  Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.provision.requirements import HostRefusal


@dataclass(frozen=True, slots=True)
class Round:
    """
    One round of changes.

    Attributes:
        changed: Names of the resources that were changed.
        before: Change of each resource that differed before it, by name.
    """

    changed: frozenset[str]
    before: Mapping[str, str]


def reason_to_stop(
    rounds: Sequence[Round], now: Mapping[str, str], rounds_max: int
) -> HostRefusal | None:
    """
    Return why no further round is tried; None: another one may succeed.

    Args:
        now: Change of each resource that differs now, by name.
    """
    for name, change in now.items():
        if _times_reverted(rounds, now, name) >= 2:
            return HostRefusal(
                error="CommandFailed",
                why=f"{name}: {change}: right after its change and different again, twice",
                fix="another program on the host changes it back: look for a configuration tool",
            )
        if _times_without_effect(rounds, now, name) >= 2:
            return HostRefusal(
                error="CommandFailed",
                why=f"{name}: {change}: changed twice without effect",
                fix="look on the host at what holds it (mount, findmnt, lsattr), "
                "then: inv provision",
            )
    if len(rounds) < rounds_max:
        return None
    return HostRefusal(
        error="CommandFailed",
        why=f"still different after {rounds_max} rounds of changes: {', '.join(now)}",
        fix="inv provision again; if it ends in the same way, this is a defect of slipway",
    )


def _times_reverted(rounds: Sequence[Round], now: Mapping[str, str], name: str) -> int:
    """
    Return how often *name* was found right, and then different again, after it was changed.
    """
    looks = [*(round_.before for round_ in rounds), now]
    was_changed, times = False, 0
    for number, round_ in enumerate(rounds, 1):
        was_right = name not in looks[number - 1]
        if was_changed and was_right and name in looks[number]:
            times += 1
        was_changed = was_changed or name in round_.changed
    return times


def _times_without_effect(rounds: Sequence[Round], now: Mapping[str, str], name: str) -> int:
    """
    Return after how many of the last rounds *name* differed just as before its change.
    """
    times = 0
    for round_ in reversed(rounds):
        if name not in round_.changed or round_.before.get(name) != now.get(name):
            break
        times += 1
    return times
