"""
The pairs of faults that are explored: all of a few kinds, and a sample of all kinds.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

_OWN = ("check", "boot")  # the host's own way back


@dataclass(frozen=True)
class Pairs:
    """
    Attributes:
        first, second: Which fault may come first, and which second, in words.
        is_first, is_second: Return whether a fault at a point is one.
    """

    name: str
    scenario: str
    first: str
    second: str
    is_first: Callable[[object, str], bool]
    is_second: Callable[[object, str], bool]

    def only(self, case, index, point, fault):
        return (self.is_second if case else self.is_first)(point, fault)

    @property
    def line(self):
        return f"| {self.scenario} | {self.first} | {self.second} |"


class Sample:
    """
    One of *every* pairs, of all faults at all boundaries: the same pairs for the same *seed*.

    The first fault is one of the square root of that many, and the second one of as many.
    """

    def __init__(self, every, seed):
        self._share, self._seed = every**-0.5, seed

    def only(self, case, index, point, fault):
        drawn = zlib.crc32(f"{self._seed} {','.join(case)} {index}.{fault}".encode())
        return drawn < self._share * 2**32


PAIRS = (
    Pairs(
        "way-back",
        "release",
        "kill at any boundary",
        "any fault at any boundary of the host's own way back",
        lambda point, fault: fault == "kill",
        lambda point, fault: point.verb in _OWN,
    ),
    Pairs(
        "two-hosts-die",
        "release",
        "power_cut as a verb is sent",
        "power_cut as a verb is sent",
        lambda point, fault: (point.when, fault) == ("send", "power_cut"),
        lambda point, fault: (point.when, fault) == ("send", "power_cut"),
    ),
    Pairs(
        "lost-then-killed",
        "release",
        "lost as a verb is sent",
        "kill as a verb is sent",
        lambda point, fault: (point.when, fault) == ("send", "lost"),
        lambda point, fault: (point.when, fault) == ("send", "kill"),
    ),
    Pairs(
        "late-then-cut",
        "etcd_rollback",
        "slow as a status is answered",
        "cut_off as a verb is sent",
        lambda point, fault: (point.when, point.verb, fault) == ("answer", "status", "slow"),
        lambda point, fault: (point.when, fault) == ("send", "cut_off"),
    ),
)
