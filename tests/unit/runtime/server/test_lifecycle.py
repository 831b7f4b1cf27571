import pytest

from runtime.server.lifecycle import ENDS, TRANSITIONS, Life, LifeEvent, Phase, advance


def reachable(start):
    reached, todo = set(), [start]
    while todo:
        phase = todo.pop()
        if phase not in reached:
            reached.add(phase)
            todo += [to for (frm, _), to in TRANSITIONS.items() if frm is phase]
    return reached


def test_every_phase_is_reachable_and_can_end():
    """
    No phase is unreachable, and from every phase an end can be reached.
    """
    assert set(Phase) == reachable(Phase.LOADING)
    assert all(reachable(phase) & ENDS for phase in Phase)


def test_every_phase_handles_sigterm_and_a_dead_engine():
    """
    Each phase that is not final has a transition on TERMINATED and on BROKEN.
    """
    for phase in set(Phase) - ENDS:
        assert (phase, LifeEvent.TERMINATED) in TRANSITIONS, phase
        assert (phase, LifeEvent.BROKEN) in TRANSITIONS, phase


def test_only_a_warm_up_leads_to_ready():
    """
    No other event leads to READY.
    """
    ways = {way for way, to in TRANSITIONS.items() if to is Phase.READY}
    assert ways == {(Phase.WARMING, LifeEvent.WARMED)}


def test_a_stopping_phase_never_serves_again():
    """
    No transition leads from it to a phase that generates.
    """
    for phase in Phase:
        if phase.is_leaving:
            assert not reachable(phase) & {Phase.WARMING, Phase.READY}
    assert Phase.READY in reachable(Phase.LOADING)  # negative control


def test_an_unknown_transition_raises():
    """
    The phase stays the same.
    """
    life = Life()
    with pytest.raises(ValueError, match="no transition from loading on drained"):
        life.on(LifeEvent.DRAINED)
    assert life.phase is Phase.LOADING
    assert advance(Phase.LOADING, LifeEvent.LOADED) is Phase.WARMING
