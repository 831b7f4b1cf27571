"""
What counts as a good cell: one version, in time, nothing lost on hosts that live.
"""

import pytest

from deploy.drill.cells import Recovery, Task, cells_of, spread
from deploy.drill.faults import Fault
from tests.unit.deploy.drill.builders import make_line, make_result


def test_a_cell_in_which_all_is_as_promised_is_good():
    result = make_result()
    assert result.is_good
    assert result.faults == []
    assert not result.is_mixed


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"settled_s": None}, "not settled"),
        ({"settled_s": 12.0}, "settled after 12.0 s"),
        ({"lost": {"n1": 1}}, "1 requests lost"),
        ({"recovery": Recovery("rollback", 9, 2.0, {"n1": "v1", "n2": "v1"})}, "exit 9"),
        ({"recovery": Recovery("rollback", 0, 2.0, {"n1": "v1", "n2": "v2"})}, "'n2': 'v2'"),
        ({"recovery": Recovery("resume", 0, 2.0, {"n1": None, "n2": None})}, "None"),
        ({"problem": "the command did not end"}, "did not end"),
    ],
)
def test_anything_less_is_red(changes, why):
    """
    Each promise has a cell that breaks it.
    """
    result = make_result(**changes)
    assert not result.is_good
    assert why in result.faults[0]


def test_a_line_that_never_came_is_neither_good_nor_red():
    """
    Such a cell proves nothing.
    """
    result = make_result(is_reached=False)
    assert not result.is_good
    assert result.faults == []


def test_the_limit_counts_from_when_a_host_is_alone():
    """
    While the operator lives, or the host boots, its own way back is not due.
    """
    assert make_result(settled_s=20.0, waited_from_s=10.0).is_good
    assert not make_result(settled_s=22.0, waited_from_s=10.0).is_good


def test_a_host_that_died_may_lose_its_own_requests():
    """
    The others may not, and a host that did not die may not either.
    """
    died = make_result(Fault.CRASH, lost={"n1": 30})
    assert died.is_good
    assert (died.lost_there, died.lost_elsewhere) == (30, 0)
    assert not make_result(Fault.CRASH, lost={"n1": 30, "n2": 1}).is_good
    assert not make_result(Fault.CUT, lost={"n1": 1}).is_good


def test_a_mixed_fleet_is_told_and_is_not_red():
    """
    Each host serves one version; they differ until the next command.
    """
    result = make_result(versions={"n1": "v2", "n2": "v1"})
    assert result.is_mixed
    assert result.is_good
    assert not make_result(versions={"n1": None, "n2": "v1"}).is_mixed


def test_a_subset_has_every_fault_and_many_lines():
    """
    It is the same every time, and has no cell twice.
    """
    lines = [make_line(host=f"n{number}") for number in range(1, 9)]
    cells = cells_of(Task.RELEASE, lines, list(Fault))
    assert len(cells) == len(lines) * len(Fault)
    chosen = spread(cells, 10)
    assert {cell.fault for cell in chosen} == set(Fault)
    assert len({cell.line for cell in chosen}) >= 5
    assert len(set(chosen)) == 10
    assert spread(cells, 10) == chosen
    assert spread(cells, 1000) == cells
