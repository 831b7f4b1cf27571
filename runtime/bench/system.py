"""
What is timed: our engine and its peers look alike to the session.
"""

from collections.abc import Callable
from typing import Protocol

from runtime.bench.sample import RunSample
from runtime.bench.shapes import ModelShape
from runtime.bench.work import Line, Work


class TimedSystem(Protocol):
    """
    An engine with random weights of one shape.

    Attributes:
        line_s: Once a line took longer, it is not run again; None: there is no limit.
    """

    version: str
    line_s: float | None

    def trim(self, line: Line, work: Work) -> tuple[Work, str]:
        """
        Return what of *work* it does in bearable time, and what that leaves out, in words.
        """

    def run(self, work: Work) -> RunSample:
        """
        Answer all requests of *work*, which arrive at once, greedily and to their full length.
        """

    def close(self) -> None:
        """
        Give the device's memory back.
        """


# Of a shape, on a device.
OpenTimedSystem = Callable[[ModelShape, str], TimedSystem]


class NotInstalled(Exception):
    """
    The peer is no package of this Python.
    """


class BenchError(Exception):
    """
    The engine did something else than it was asked.
    """


def check_tokens(made: list[int], work: Work) -> None:
    """
    Raises:
        BenchError: Some answer has another length than was asked: its time says nothing.
    """
    asked = [request.new for request in work]
    if made != asked:
        raise BenchError(f"answers of {sum(made)} tokens instead of {sum(asked)}")
