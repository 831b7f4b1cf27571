import pytest

from tests.simulation.explore import explore
from tests.simulation.mutants import MUTANTS, broken
from tests.simulation.scenarios import SCENARIOS


def _failures(mutant):
    def only(_, point, fault):
        return fault in mutant.faults and (point.when, point.verb) in mutant.at

    results, _ = explore(SCENARIOS[mutant.scenario], mutant.budget, only)
    return [result for result in results if result.failure]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_broken_guard_is_noticed(mutant):
    """
    An invariant fails with the guard broken; with all guards whole none does: test_simulation.
    """
    with broken(mutant):
        assert _failures(mutant)
