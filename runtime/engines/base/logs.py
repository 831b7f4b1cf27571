r"""
The log of every process of the runtime: standard error, one entry a line, foreign text visible.

A path, a model's name or the message of an exception may hold the end of a line and then look like
an entry of its own, `runtime.ready ...` for example, or begin a line with `<0>`, which journald
reads as a priority.
"""

import logging
import sys
import threading
from types import TracebackType
from typing import TextIO, cast

from runtime.contract.visible_stream import VisibleStream, trusted_stream
from runtime.contract.visible_text import indented, visible

_ARGUMENT_LIMIT = 1 << 14  # characters
log = logging.getLogger("runtime")


class VisibleFormatter(logging.Formatter):
    r"""
    Formats a record as its message; the traceback follows in lines that are indented.

    Texts among the arguments are on one line.  A `\n` of any other origin, such as an error that
    has several lines, is followed by an indent.
    """

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__ | {"exc_text": None})
        if isinstance(record.args, tuple):
            shown.args = tuple(map(_visible_argument, record.args))
        return indented(super().format(shown))


def _visible_argument(argument: object) -> object:
    return visible(argument, limit=_ARGUMENT_LIMIT) if isinstance(argument, str) else argument


def configure_logging() -> None:
    """
    Log to standard error, and guard it; call once, at the start of a process.

    Unexpected exceptions of the process and of its threads become entries of the log as well.
    """
    stream = trusted_stream(sys.stderr)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.stderr = cast("TextIO", VisibleStream(stream))
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_of_thread


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        log.info("runtime.interrupted")
        return
    log.critical("runtime.crashed", exc_info=(kind, error, trace))


def _log_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
