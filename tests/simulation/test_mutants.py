import pytest

from tests.simulation.explore import explore
from tests.simulation.mutants import MUTANTS, broken
from tests.simulation.scenarios import SCENARIOS


def _failures(mutant):
    def only(case, index, point, fault):
        return fault in mutant.faults and (point.when, point.verb) in mutant.at

    results, _ = explore(SCENARIOS[mutant.scenario], mutant.budget, only)
    return [result.failure for result in results if result.failure]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_broken_guard_is_noticed(mutant):
    """
    Its own invariant fails with the guard broken; test_simulation has the whole program.
    """
    with broken(mutant):
        failures = _failures(mutant)

    assert [failure for failure in failures if mutant.notices in failure], failures
