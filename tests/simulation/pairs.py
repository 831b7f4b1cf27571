"""
The pairs of faults that are explored.
"""

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

    def only(self, has_first, point, fault):
        return (self.is_second if has_first else self.is_first)(point, fault)

    @property
    def line(self):
        return f"| {self.scenario} | {self.first} | {self.second} |"


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
)
