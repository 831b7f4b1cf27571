"""
Writes results to standard output, progress and errors to standard error, and ends with a code.

Nothing here depends on the width of the terminal.  Colour is only decoration: it never decides
whether something is written.
"""

import io
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from deploy.errors import DeployError

if TYPE_CHECKING:
    from rich.console import RenderableType

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell reports SIGPIPE
_ANY_WIDTH = 100_000  # columns
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def print_progress(line: str) -> None:
    """
    Write a line to standard error.  A full disk or a closed pipe there must not end a release.
    """
    _try_to_write(sys.stderr, f"{line}\n")


def print_change(line: str) -> None:
    """
    Write a line of the result while the task still runs; see `print_progress`.
    """
    _try_to_write(sys.stdout, f"{line}\n")


def print_json(document: dict[str, Any], *, as_line: bool = False) -> None:
    """
    Write *document* to standard output, indented or as one line.
    """
    _write_result(json.dumps(document, indent=None if as_line else 2, default=str) + "\n")


def print_text(text: "RenderableType") -> None:
    """
    Write a text or a table to standard output; a table is as wide as its longest row.
    """
    _write_result(text + "\n" if isinstance(text, str) else rendered(text))


def rendered(table: "RenderableType") -> str:
    """
    Return *table* as text, whole at any width of the terminal.
    """
    from rich.console import Console
    from rich.measure import Measurement

    is_terminal = sys.stdout.isatty()
    wide = Console(file=_Text(), width=_ANY_WIDTH, force_terminal=is_terminal)
    parts = getattr(table, "renderables", [table])
    width = max(Measurement.get(wide, wide.options, part).maximum for part in parts)
    out = _Text()
    Console(file=out, width=max(1, width), force_terminal=is_terminal).print(table)
    return out.getvalue()


class _Text(io.StringIO):
    """
    Text in memory with the encoding of standard output, so that rich draws lines it can show.
    """

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding or "utf-8"


def print_error(error: DeployError, printed: Iterable[str] = ()) -> None:
    """
    Write what failed, why and what to do to standard error.

    Args:
        printed: Lines of progress so far; a reason that stands in one of them is not repeated.
    """
    text = str(error)
    if any(error.why and error.why in line for line in printed):
        text = f"{error.what}\n  why: see above\n  fix: {error.fix}"
    if _has_colour(sys.stderr):
        text = f"{_RED}{text}{_PLAIN}"
    _try_to_write(sys.stderr, f"\n{text}\n")


def finish(
    document: dict[str, Any],
    text: "RenderableType",
    error: DeployError | None,
    *,
    as_json: bool,
    printed: Iterable[str] = (),
    is_printed: bool = False,
) -> None:
    """
    Print a result; where the task failed, tell the error once and exit with its code.

    Args:
        printed: See `print_error`.
        is_printed: Progress has told the whole error; only its code is left.
    """
    if as_json:
        print_json(document | ({"error": error.as_json()} if error else {}))
    elif text:
        print_text(text)
    if error is not None:
        if not (as_json or is_printed):
            print_error(error, printed)
        sys.exit(error.exit_code)


def fail(error: DeployError, *, as_json: bool, as_line: bool = False) -> NoReturn:
    """
    Tell *error*, as one JSON document or as text, and exit with its code.
    """
    try:
        if as_json:
            print_json({"error": error.as_json()}, as_line=as_line)
            sys.exit(error.exit_code)
    except OSError:  # standard output is full: standard error may not be
        pass
    print_error(error)
    sys.exit(error.exit_code)


def end_quietly() -> NoReturn:
    """
    Exit because the reader of standard output is gone, as `head` is after its last line.
    """
    sys.exit(EXIT_BROKEN_PIPE)


def close_output() -> None:
    """
    Drop what standard output did not take, at the end: Python itself would fail once more on it.
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write_result(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def _try_to_write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed before Python began
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):  # full, gone, or closed
        pass
