from pathlib import Path

import pytest

from deploy.release.machine import ENDS, TRANSITIONS, Event, State, advance, table

ROOT = Path(__file__).parents[4]


def reachable(start):
    seen, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += [to for (frm, _), to in TRANSITIONS.items() if frm is state]
    return seen


def test_every_state_is_reachable_and_can_end():
    """
    No state is unreachable, and from every state some end can be reached.
    """
    assert set(State) == reachable(State.PLANNED)
    assert all(reachable(state) & ENDS for state in State)


def test_every_moving_state_says_what_failure_and_loss_mean():
    """
    Each state that is not an end has a way out on FAILED and on LOST.
    """
    for state in set(State) - ENDS:
        assert (state, Event.FAILED) in TRANSITIONS, state
        assert (state, Event.LOST) in TRANSITIONS, state


def test_ends_are_final():
    """
    Nothing leads out of an end, and asking is our bug.
    """
    assert not [key for key in TRANSITIONS if key[0] in ENDS]
    with pytest.raises(ValueError, match="no transition"):
        advance(State.LIVE, Event.DONE)


def test_nothing_but_success_leads_to_live():
    """
    No failure, loss or refusal ends with the new release taking its full share.
    """
    assert {Event.DONE} == {event for (_, event), to in TRANSITIONS.items() if to is State.LIVE}


def test_a_release_that_may_have_had_traffic_goes_back_by_doing_something():
    """
    From a state with traffic no event but success or a pause skips the way back.
    """
    for state in State:
        if state.may_have_traffic:
            for event in (Event.FAILED, Event.REJECTED, Event.LOST):
                assert advance(state, event) is State.REVERTING


def test_the_reference_shows_the_table():
    """
    docs/reference/states.md contains the table as it is.
    """
    assert table() in (ROOT / "docs/reference/states.md").read_text()
