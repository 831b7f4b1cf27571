r"""
Standard output and standard error of the command line: no text gets through them unseen.

`guard_streams` puts a `VisibleStream` in the place of both, so that what third-party code prints
(invoke, warnings, tracebacks of threads) is made visible as well.  Our own colours and tables go
through `trusted_stream`, which deploy/cli/terminal.py alone uses.
"""

import io
import os
import sys
from pathlib import Path
from typing import TextIO, cast

from runtime.contract.visible_stream import VisibleStream, trusted_stream

__all__ = ["STREAMS", "VisibleStream", "fill_closed_descriptors", "guard_streams", "trusted_stream"]

STREAMS = ("stdout", "stderr")


def fill_closed_descriptors() -> None:
    """
    Open /dev/null in the place of each standard descriptor that the caller closed.

    A file that a child process opens would get the number, and what the child prints would go into
    that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # It gets the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def guard_streams() -> None:
    """
    Guard standard output and standard error, whatever their encoding is.
    """
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
        stream = trusted_stream(stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in an ASCII locale
        setattr(sys, name, cast("TextIO", VisibleStream(stream)))
