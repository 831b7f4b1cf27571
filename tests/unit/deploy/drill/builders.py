"""
Valid lines, cells and results; a test names only what matters to it.
"""

from deploy.drill.cells import Cell, CellResult, Recovery, Task
from deploy.drill.faults import Fault
from deploy.drill.host_state import HostState
from deploy.drill.lines import Line, SeenLine


def make_line(step="traffic.set", host="n1", phase="intent", occurrence=1, merged=()):
    return Line(host, step, phase, occurrence, merged)


def make_seen(text, at_s=0.0):
    """
    Return the line of "n1 slot.start intent"; a phase that is left out is an event.
    """
    host, step, *phase = text.split()
    return SeenLine(host, step, phase[0] if phase else "event", at_s)


def make_result(fault=Fault.SIGKILL, line=None, task=Task.RELEASE, **changes):
    """
    Return the result of a cell in which everything is as promised.
    """
    values = {
        "is_reached": True,
        "old": "v1",
        "new": "v2",
        "settled_s": 6.0,
        "limit_s": 11.0,
        "operator_exit": -9,
        "states": {"n1": "v1 (blue 100/green 0)", "n2": "v1 (blue 100/green 0)"},
        "versions": {"n1": "v1", "n2": "v1"},
        "recovery": Recovery("rollback", 0, 2.0, {"n1": "v1", "n2": "v1"}),
    }
    return CellResult(Cell(task, line or make_line(), fault), **(values | changes))


def make_state(blue=100, green=0, version="v1", at_s=0.0, is_armed=False):
    return HostState(at_s, {"blue": blue, "green": green}, version, is_armed, "boot")
