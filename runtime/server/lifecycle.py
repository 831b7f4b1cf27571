"""
The life of one runtime process, as a table.  Pure; `server.py` reports events.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Phase(StrEnum):
    LOADING = "loading"  # the engine reads the weights
    WARMING = "warming"  # loaded; only the warm-up may generate
    READY = "ready"  # answers requests
    DRAINING = "draining"  # answers what it has, refuses what is new
    STOPPED = "stopped"  # every request is answered
    FAILED = "failed"  # no engine, or none that answers: leaves for systemd to restart

    @property
    def is_ready(self) -> bool:
        return self is Phase.READY

    @property
    def is_leaving(self) -> bool:
        """
        Whether connections should be closed after their answer.
        """
        return self in (Phase.DRAINING, Phase.STOPPED, Phase.FAILED)


class LifeEvent(StrEnum):
    LOADED = "loaded"  # the weights are in memory
    WARMED = "warmed"  # an answer came through the whole path
    TERMINATED = "terminated"  # SIGTERM or SIGINT
    DRAINED = "drained"  # nothing is in flight, or the time is up
    BROKEN = "broken"  # the engine died, could not load, or did not answer the warm-up


ENDS = frozenset({Phase.STOPPED, Phase.FAILED})

TRANSITIONS: Mapping[tuple[Phase, LifeEvent], Phase] = MappingProxyType(
    {
        (Phase.LOADING, LifeEvent.LOADED): Phase.WARMING,
        (Phase.LOADING, LifeEvent.TERMINATED): Phase.DRAINING,
        (Phase.LOADING, LifeEvent.BROKEN): Phase.FAILED,
        (Phase.WARMING, LifeEvent.WARMED): Phase.READY,
        (Phase.WARMING, LifeEvent.TERMINATED): Phase.DRAINING,
        (Phase.WARMING, LifeEvent.BROKEN): Phase.FAILED,
        (Phase.READY, LifeEvent.TERMINATED): Phase.DRAINING,
        (Phase.READY, LifeEvent.BROKEN): Phase.FAILED,
        (Phase.DRAINING, LifeEvent.TERMINATED): Phase.DRAINING,  # an impatient second signal
        (Phase.DRAINING, LifeEvent.DRAINED): Phase.STOPPED,
        (Phase.DRAINING, LifeEvent.BROKEN): Phase.FAILED,
    }
)


def advance(phase: Phase, event: LifeEvent) -> Phase:
    """
    Return the phase that *event* leads to.

    Raises:
        ValueError: The table has no such step. Always our bug.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise ValueError(f"no transition from {phase} on {event}") from None


class Life:
    """
    The one place that holds the current phase.
    """

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    def on(self, event: LifeEvent) -> Phase:
        self.phase = advance(self.phase, event)
        return self.phase
