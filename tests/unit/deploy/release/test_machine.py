from pathlib import Path

import pytest

from deploy.release.machine import TRANSITIONS, Event, State, advance, table

ROOT = Path(__file__).parents[4]

ENDS = {State.LIVE, State.HELD, State.REVERTED, State.STUCK}


def reachable(start):
    reached, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += [to for (frm, _), to in TRANSITIONS.items() if frm is state]
    return reached


def test_every_state_is_reachable_and_can_end():
    """
    No state is unreachable, and from every state some end can be reached.
    """
    assert set(State) == reachable(State.PLANNED)
    assert all(reachable(state) & ENDS for state in State)


def test_every_moving_state_handles_failure_and_loss():
    """
    Each state that is not final has a transition on FAILED and on LOST.
    """
    for state in set(State) - ENDS:
        assert (state, Event.FAILED) in TRANSITIONS, state
        assert (state, Event.LOST) in TRANSITIONS, state


def test_ends_are_final():
    """
    No transition leaves a final state, and asking for one raises.
    """
    assert not [key for key in TRANSITIONS if key[0] in ENDS]
    with pytest.raises(ValueError, match="no transition"):
        advance(State.LIVE, Event.DONE)


def test_nothing_but_success_leads_to_live():
    """
    No failure, loss or refusal gives the new release its full share.
    """
    assert {Event.DONE} == {event for (_, event), to in TRANSITIONS.items() if to is State.LIVE}


def test_a_release_that_may_have_had_traffic_is_reverted_explicitly():
    """
    From a state with traffic, only success or a pause skips the revert.
    """
    for state in (State.CANARY, State.PROMOTED):
        for event in (Event.FAILED, Event.REJECTED, Event.LOST):
            assert advance(state, event) is State.REVERTING


def test_the_reference_shows_the_table():
    """
    docs/reference/states.md contains the transition table.
    """
    assert table() in (ROOT / "docs/reference/states.md").read_text()
