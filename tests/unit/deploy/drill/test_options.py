"""
The flags of `inv drill`.
"""

import pytest

from deploy.drill.cells import Task
from deploy.drill.drill import drill_options
from deploy.drill.faults import Fault
from deploy.errors import UsageError


def options(**changes):
    values = {"faults": "", "lines": "", "tasks": "", "limit": 0, "labs": 2, "keep": False,
              "first_lab": 1, "state": "hosts"}  # fmt: skip
    return drill_options(**(values | changes))


def test_without_flags_everything_is_drilled():
    assert options().faults == tuple(Fault)
    assert options().tasks == tuple(Task)


def test_faults_are_named_as_in_the_table():
    assert options(faults="SIGKILL, full disk,haproxy KILLED").faults == (
        Fault.SIGKILL, Fault.DISK, Fault.HAPROXY,
    )  # fmt: skip
    assert options(tasks="rollback").tasks == (Task.ROLLBACK,)


@pytest.mark.parametrize("changes", [{"faults": "flood"}, {"tasks": "demo"}, {"labs": 0},
                                     {"labs": 99}, {"first_lab": 0}, {"first_lab": 8},
                                     {"state": "zookeeper"},
                                     {"state": "etcd", "keep": True}])  # fmt: skip
def test_another_value_is_refused(changes):
    with pytest.raises(UsageError):
        options(**changes)


def test_the_last_lab_is_one_that_another_drill_need_not_have():
    """
    Negative control of the ranges: each alone is fine.
    """
    assert options(labs=1, first_lab=8, state="etcd").first_lab == 8
