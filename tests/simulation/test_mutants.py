import pytest

from tests.simulation.explore import explore
from tests.simulation.mutants import MUTANTS, broken
from tests.simulation.scenarios import SCENARIOS


def _failures(mutant):
    def only(_, point, fault):
        return fault in mutant.faults and (point.when, point.verb) in mutant.at

    results, _ = explore(SCENARIOS[mutant.scenario], 1, only)
    return [result for result in results if result.failure]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_broken_guard_is_noticed(mutant):
    """
    With the guard broken an invariant fails, and with the guard whole none does.
    """
    assert not _failures(mutant)
    with broken(mutant):
        assert _failures(mutant)
