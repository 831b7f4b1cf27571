import os

import pytest

from tests.simulation.explore import explore, failed, replay
from tests.simulation.faults import FAULTS, WORDS
from tests.simulation.page import PAGE, boundaries_of
from tests.simulation.pairs import PAIRS, Sample
from tests.simulation.scenarios import SCENARIOS

pytestmark = pytest.mark.timeout(7200)  # one explores for minutes, and for longer on a busy machine
_ON_REQUEST = pytest.mark.skipif(
    not os.environ.get("SLIPWAY_SIMULATION_LONG"), reason="SLIPWAY_SIMULATION_LONG=1 runs it"
)
_LONG = ("rejected", "etcd", "etcd_rollback")
_LATE = ("slow", "cut_off")
_EVERY = int(os.environ.get("SLIPWAY_SIMULATION_EVERY", "20000"))


@pytest.mark.parametrize(
    "name",
    ["release", "rollback", *(pytest.param(n, marks=_ON_REQUEST) for n in _LONG)],
)
def test_a_fault_at_any_boundary_leaves_every_host_serving_one_version(name):
    """
    Every invariant holds with each fault at each boundary, and without any.
    """
    results, boundaries = explore(SCENARIOS[name], 1)

    assert not failed(name, results)
    text = PAGE.read_text()
    missing = [row for row in boundaries_of(boundaries) if row not in text]
    assert not missing, "python -m tests.simulation.page writes the page anew"


@pytest.mark.parametrize("name", ["etcd_rollback", "etcd_resume"])
def test_a_rollback_without_an_error_has_brought_every_host(name):
    """
    Also one that another operator resumes, with a host that is late or cut off at any boundary.
    """
    results, _ = explore(SCENARIOS[name], 1, lambda case, index, point, fault: fault in _LATE)

    assert not failed(name, results)
    assert {fault for result in results for fault in _LATE if fault in result.case} == set(_LATE)


@_ON_REQUEST
@pytest.mark.parametrize("pairs", PAIRS, ids=lambda pairs: pairs.name)
def test_a_second_fault_changes_nothing(pairs):
    """
    Every invariant holds with all pairs of these.
    """
    results, _ = explore(SCENARIOS[pairs.scenario], 2, pairs.only)

    assert not failed(pairs.scenario, results)
    assert any(len(result.points) == 2 for result in results)


@pytest.mark.parametrize("name", ["release", "rollback"])
def test_a_sample_of_all_pairs_changes_nothing(name):
    """
    Every invariant holds with pairs of any two faults at any two boundaries.

    SLIPWAY_SIMULATION_EVERY=N takes one pair of N, SLIPWAY_SIMULATION_SEED=TEXT others.
    """
    sample = Sample(_EVERY, os.environ.get("SLIPWAY_SIMULATION_SEED", ""))
    results, _ = explore(SCENARIOS[name], 2, sample.only)

    assert not failed(name, results)
    assert sum(len(result.points) == 2 for result in results) > 20


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_undisturbed_it_ends_as_it_should(name):
    """
    Without a fault nothing else happens than was asked.
    """
    result = replay(name, "")

    assert result.failure is None
    assert result.ending == SCENARIOS[name].ends


def test_the_same_case_goes_the_same_way():
    """
    A case that failed once can be run again.
    """
    one, two = (replay("release", "94.lost,120.power_cut") for _ in range(2))

    assert one == two
    assert len(one.points) == 2


def test_a_case(case):
    """
    Runs the case of --case alone: pytest tests/simulation -k test_a_case --case=release:94.lost
    """
    name, _, faults = case.partition(":")

    result = replay(name, faults)

    assert result.failure is None, result.points


def test_the_page_names_every_fault():
    """
    Each has its line, with what happens.
    """
    text = PAGE.read_text()

    assert set(WORDS) == set(FAULTS)
    assert not [pairs.name for pairs in PAIRS if pairs.line not in text]
    assert not [name for name in FAULTS if f"| {name} | {WORDS[name]} |" not in text]
