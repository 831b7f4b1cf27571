"""
The interface of a timed engine, ours or a peer, and its errors.
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
        line_s: A line that took longer gets no further run; None: no limit.
    """

    version: str
    line_s: float | None

    def trim(self, line: Line, work: Work) -> tuple[Work, str]:
        """
        Return the part of *work* that runs in acceptable time, and a note of the rest.
        """

    def run(self, work: Work) -> RunSample:
        """
        Run all requests of *work* at once, greedily and to their full length.
        """

    def close(self) -> None:
        """
        Free the device's memory.
        """


# Opens an engine with a model of this shape on this device.
OpenTimedSystem = Callable[[ModelShape, str], TimedSystem]


class NotInstalled(Exception):
    """
    The peer's package is not installed.
    """


class BenchError(Exception):
    """
    The engine did not do the work that was requested.
    """


def check_tokens(new_counts: list[int], work: Work) -> None:
    """
    Check that each request of *work* got all of its new tokens.

    Raises:
        BenchError: The answers do not have the requested lengths; their time has no meaning.
    """
    requested = [request.new_tokens for request in work]
    if new_counts != requested:
        raise BenchError(f"answers of {sum(new_counts)} tokens instead of {sum(requested)}")
