"""
The life of one runtime process, as a table.  Pure; `process` sends the events.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Phase(StrEnum):
    LOADING = "loading"  # the engine reads the weights
    WARMING = "warming"  # loaded; only the warm-up may generate
    READY = "ready"  # answers requests
    DRAINING = "draining"  # finishes its requests, refuses new ones
    STOPPED = "stopped"  # every request is answered
    FAILED = "failed"  # the engine died or does not answer: exits, and systemd restarts it

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
    WARMED = "warmed"  # the warm-up request was answered
    TERMINATED = "terminated"  # SIGTERM or SIGINT
    DRAINED = "drained"  # no request is in flight, or the drain timeout passed
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
        (Phase.DRAINING, LifeEvent.TERMINATED): Phase.DRAINING,  # a second signal
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
