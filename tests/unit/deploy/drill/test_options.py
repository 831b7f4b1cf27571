"""
The flags of `inv drill`.
"""

import pytest

from deploy.drill.cells import Task
from deploy.drill.drill import drill_options
from deploy.drill.faults import Fault
from deploy.errors import UsageError


def options(**changes):
    values = {"faults": "", "lines": "", "tasks": "", "limit": 0, "labs": 2, "keep": False}
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
                                     {"labs": 99}])  # fmt: skip
def test_another_value_is_refused(changes):
    with pytest.raises(UsageError):
        options(**changes)
