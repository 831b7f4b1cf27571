import pytest

from runtime.server.lifecycle import ENDS, TRANSITIONS, Life, LifeEvent, Phase, advance


def reachable(start):
    seen, todo = set(), [start]
    while todo:
        phase = todo.pop()
        if phase not in seen:
            seen.add(phase)
            todo += [to for (frm, _), to in TRANSITIONS.items() if frm is phase]
    return seen


def test_every_phase_is_reachable_and_can_end():
    """
    No phase is unreachable, and from every phase an end can be reached.
    """
    assert set(Phase) == reachable(Phase.LOADING)
    assert all(reachable(phase) & ENDS for phase in Phase)


def test_every_living_phase_says_what_sigterm_and_a_dead_engine_mean():
    """
    Each phase that is not an end has a way out on TERMINATED and on BROKEN.
    """
    for phase in set(Phase) - ENDS:
        assert (phase, LifeEvent.TERMINATED) in TRANSITIONS, phase
        assert (phase, LifeEvent.BROKEN) in TRANSITIONS, phase


def test_only_a_warm_up_makes_ready():
    """
    Nothing but an answered warm-up leads to READY.
    """
    ways = {way for way, to in TRANSITIONS.items() if to is Phase.READY}
    assert ways == {(Phase.WARMING, LifeEvent.WARMED)}


def test_nothing_comes_back_from_leaving():
    """
    A phase that is leaving never leads to one that generates.
    """
    for phase in Phase:
        if phase.is_leaving:
            assert not reachable(phase) & {Phase.WARMING, Phase.READY}
    assert Phase.READY in reachable(Phase.LOADING)  # negative control


def test_a_step_that_the_table_lacks_is_our_bug():
    """
    An event that can't happen raises, and the phase stays.
    """
    life = Life()
    with pytest.raises(ValueError, match="no transition from loading on drained"):
        life.on(LifeEvent.DRAINED)
    assert life.phase is Phase.LOADING
    assert advance(Phase.LOADING, LifeEvent.LOADED) is Phase.WARMING
