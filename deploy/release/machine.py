"""
The life of one release on one host, as a table.

Pure.  The executor does the work, reports an `Event`, and asks `advance` where that leads.
`docs/reference/states.md` is drawn from TRANSITIONS; a test compares them.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    PLANNED = "planned"  # nothing touched
    STAGED = "staged"  # bundle on disk and verified; the old release serves
    STARTED = "started"  # the new slot runs, is warm and gave the golden answers; no traffic
    CANARY = "canary"  # the new slot takes a share of the traffic and is measured
    PROMOTED = "promoted"  # the new slot has all the traffic; the old one is idle, but warm
    LIVE = "live"  # recorded as good; the old slot is stopped
    HELD = "held"  # stopped without a verdict: the old slot has all the traffic, the new is warm
    REVERTING = "reverting"  # going back to the release that served before
    REVERTED = "reverted"  # the old release serves, as before
    STUCK = "stuck"  # the way back failed; inv status, then inv rollback


class Event(StrEnum):
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"  # measured and refused by a gate, here or on another host
    INCONCLUSIVE = "inconclusive"  # a gate leaves the decision to the operator
    LOST = "lost"  # lease or connection gone: we do not know what happened


TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        # Nothing that serves was touched: there is nothing to go back from.
        (State.PLANNED, Event.DONE): State.STAGED,
        (State.PLANNED, Event.FAILED): State.REVERTED,
        (State.PLANNED, Event.REJECTED): State.REVERTED,
        (State.PLANNED, Event.INCONCLUSIVE): State.REVERTED,
        (State.PLANNED, Event.LOST): State.REVERTED,
        (State.STAGED, Event.DONE): State.STARTED,
        (State.STAGED, Event.FAILED): State.REVERTING,
        (State.STAGED, Event.REJECTED): State.REVERTED,
        (State.STAGED, Event.INCONCLUSIVE): State.REVERTED,
        (State.STAGED, Event.LOST): State.REVERTING,
        (State.STARTED, Event.DONE): State.CANARY,
        (State.STARTED, Event.FAILED): State.REVERTING,
        (State.STARTED, Event.REJECTED): State.REVERTING,
        (State.STARTED, Event.INCONCLUSIVE): State.REVERTING,
        (State.STARTED, Event.LOST): State.REVERTING,
        (State.CANARY, Event.DONE): State.PROMOTED,
        (State.CANARY, Event.FAILED): State.REVERTING,
        (State.CANARY, Event.REJECTED): State.REVERTING,
        (State.CANARY, Event.INCONCLUSIVE): State.HELD,
        (State.CANARY, Event.LOST): State.REVERTING,
        (State.PROMOTED, Event.DONE): State.LIVE,
        (State.PROMOTED, Event.FAILED): State.REVERTING,
        (State.PROMOTED, Event.REJECTED): State.REVERTING,
        (State.PROMOTED, Event.INCONCLUSIVE): State.HELD,
        (State.PROMOTED, Event.LOST): State.REVERTING,
        (State.REVERTING, Event.DONE): State.REVERTED,
        (State.REVERTING, Event.FAILED): State.STUCK,
        (State.REVERTING, Event.LOST): State.STUCK,
    }
)


def advance(state: State, event: Event) -> State:
    """
    Return the state that *event* leads to.

    Raises:
        ValueError: The table has no such step.  Always our bug, never the host's.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"no transition from {state} on {event}") from None


def table() -> str:
    """
    Return TRANSITIONS as the Markdown table of `docs/reference/states.md`.
    """
    head = "| state | " + " | ".join(Event) + " |\n|" + " --- |" * (len(Event) + 1) + "\n"
    rows = []
    for state in State:
        cells = [TRANSITIONS.get((state, event), "-") for event in Event]
        rows.append(f"| **{state}** | " + " | ".join(str(c) for c in cells) + " |")
    return head + "\n".join(rows) + "\n"
