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
    def may_generate(self) -> bool:
        """
        Whether a request that arrives now may reach the engine.
        """
        return self in (Phase.WARMING, Phase.READY)

    @property
    def is_leaving(self) -> bool:
        """
        Whether connections should be closed after their answer.
        """
        return self in (Phase.DRAINING, Phase.STOPPED, Phase.FAILED)


class Event(StrEnum):
    LOADED = "loaded"  # the weights are in memory
    WARMED = "warmed"  # an answer came through the whole path
    TERMINATED = "terminated"  # SIGTERM or SIGINT
    DRAINED = "drained"  # nothing is in flight, or the time is up
    BROKEN = "broken"  # the engine died, could not load, or did not answer the warm-up


ENDS = frozenset({Phase.STOPPED, Phase.FAILED})

TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = MappingProxyType(
    {
        (Phase.LOADING, Event.LOADED): Phase.WARMING,
        (Phase.LOADING, Event.TERMINATED): Phase.DRAINING,
        (Phase.LOADING, Event.BROKEN): Phase.FAILED,
        (Phase.WARMING, Event.WARMED): Phase.READY,
        (Phase.WARMING, Event.TERMINATED): Phase.DRAINING,
        (Phase.WARMING, Event.BROKEN): Phase.FAILED,
        (Phase.READY, Event.TERMINATED): Phase.DRAINING,
        (Phase.READY, Event.BROKEN): Phase.FAILED,
        (Phase.DRAINING, Event.TERMINATED): Phase.DRAINING,  # an impatient second signal
        (Phase.DRAINING, Event.DRAINED): Phase.STOPPED,
        (Phase.DRAINING, Event.BROKEN): Phase.FAILED,
    }
)


def advance(phase: Phase, event: Event) -> Phase:
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

    def on(self, event: Event) -> Phase:
        self.phase = advance(self.phase, event)
        return self.phase
