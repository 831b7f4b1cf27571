r"""
Writes results to standard output, progress and errors to standard error, and ends with a code.

The one door of the command line: nothing else in deploy/ prints.  All text that passes is made
visible (deploy/foreign_text.py), except for the ends of our own lines, our colours and our tables.
A `\n` within a line makes a further line that is indented, so that it cannot look like one of ours.

Nothing here depends on the width of the terminal.  Colour is only decoration: it never decides
whether something is written.
"""

import contextlib
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TextIO

from deploy.cli.grid import Grid, draw
from deploy.cli.streams import STREAMS, trusted_stream
from deploy.errors import DeployError, hide_passwords
from deploy.foreign_text import indented, visible

EXIT_BROKEN_PIPE = 141  # as a shell reports SIGPIPE
Result = str | Sequence[str] | Grid  # a line, lines or a table

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"  # ECMA-48
_QUESTION_LIMIT = 1 << 16  # characters; it may name all hosts of a fleet
_JSON_LIMIT = 1 << 16  # characters of a text in a document
_SURROGATE = re.compile("[\ud800-\udfff]")


def print_progress(line: str) -> None:
    """
    Write a line to standard error.  A full disk or a closed pipe there must not end a release.
    """
    _try_to_write(sys.stderr, _lines([line]))


def print_change(line: str) -> None:
    """
    Write a line of the result while the task still runs; see `print_progress`.
    """
    _try_to_write(sys.stdout, _lines([line]))


def print_question(question: str) -> None:
    """
    Write *question* to standard error without an end of line.
    """
    _try_to_write(sys.stderr, f"{visible(question, limit=_QUESTION_LIMIT)} [y/N] ")


def print_json(document: dict[str, Any], *, as_line: bool = False) -> None:
    """
    Write *document* to standard output, indented or as one line.
    """
    _write_result(json_text(document, as_line=as_line))


def json_text(document: dict[str, Any], *, as_line: bool = False) -> str:
    r"""
    Return *document* as JSON in ASCII that every parser takes.

    Surrogates without a partner become visible text, NaN and the infinities null; a text of more
    than 65,536 characters is cut, with a mark.  DEL and the second `#` of `##`, which may begin a
    command of a CI system, are escaped; the value stays.
    """
    text = json.dumps(
        _plain(document), indent=None if as_line else 2, default=_as_text, allow_nan=False
    )
    return text.replace("##", "#\\u0023").replace("\x7f", "\\u007f") + "\n"


def print_text(text: Result) -> None:
    """
    Write a text or a table to standard output; a table is as wide as its longest row.
    """
    _write_result(_rendered(text))


def redraw(text: Result) -> None:
    """
    Write a text or a table to the top of the terminal, over the one before.
    """
    shown = _rendered(text).replace("\n", f"{_CLEAR_LINE}\n")
    _write_result(f"{_HOME}{shown}{_CLEAR_BELOW}\n")


def rendered(table: Grid) -> str:
    """
    Return *table* as text, whole at any width of the terminal.
    """
    encoding = sys.stdout.encoding or "utf-8"
    return draw(table, is_terminal=sys.stdout.isatty(), encoding=encoding)


def print_error(error: DeployError, printed: Iterable[str] = ()) -> None:
    """
    Write what failed, why and what to do to standard error.

    Args:
        printed: Lines of progress so far; a reason that stands in one of them is not repeated.
    """
    is_told = any(error.why and error.why in line for line in printed)
    why = "see above" if is_told else error.why
    text = _lines([error.what]) + _lines([f"  why: {why}", f"  fix: {error.fix}"], indent=7)
    if _has_colour(sys.stderr):
        text = f"{_RED}{text.rstrip()}{_PLAIN}\n"
    _try_to_write(sys.stderr, f"\n{text}")


def traceback_text(error: BaseException) -> str:
    """
    Return the traceback of *error*, made visible; all lines but the first are indented.
    """
    return _lines(["".join(traceback.format_exception(error)).rstrip("\n")])


def print_traceback(error: BaseException) -> None:
    """
    Write the traceback of *error* to standard error.
    """
    _try_to_write(sys.stderr, traceback_text(error))


def finish(
    document: dict[str, Any],
    text: Result,
    error: DeployError | None,
    *,
    as_json: bool,
    printed: Iterable[str] = (),
    is_printed: bool = False,
) -> None:
    """
    Print a result; where the task failed, tell the error once and exit with its code.

    An error keeps its code where standard output takes nothing; it is then told on standard error.

    Args:
        printed: See `print_error`.
        is_printed: Progress has told the whole error; only its code is left.
    """
    if error is None:
        if as_json:
            print_json(document)
        elif text:
            print_text(text)
        return
    is_written = True
    try:
        if as_json:
            print_json(document | {"error": error.as_json()})
        elif text:
            print_text(text)
    except (OSError, SystemExit):
        is_written = False
    if not (as_json or is_printed) or not is_written:
        print_error(error, printed)
    sys.exit(error.exit_code)


def fail(error: DeployError, *, as_json: bool, as_line: bool = False) -> NoReturn:
    """
    Tell *error*, as one JSON document or as text, and exit with its code.

    Where standard output takes no document, the error is told on standard error.
    """
    try:
        if as_json:
            print_json({"error": error.as_json()}, as_line=as_line)
            sys.exit(error.exit_code)
    except OSError:  # standard output is full: standard error may not be
        pass
    except SystemExit as ending:
        if ending.code != EXIT_BROKEN_PIPE:
            raise
    print_error(error)
    sys.exit(error.exit_code)


def end_quietly() -> NoReturn:
    """
    Exit because the reader of standard output is gone, as `head` is after its last line.
    """
    sys.exit(EXIT_BROKEN_PIPE)


def close_output() -> None:
    """
    Drop what the streams did not take, at the end: Python itself would fail once more on it.
    """
    for stream in (getattr(sys, name) for name in STREAMS):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _lines(texts: Iterable[str], *, indent: int = 2) -> str:
    r"""
    Return each of *texts* as a line; what follows a `\n` within one is indented, and users and
    passwords of URLs are hidden.
    """
    shown = (indented(hide_passwords(text), indent=indent) for text in texts)
    return "".join(f"{line}\n" for line in shown)


def _rendered(text: Result) -> str:
    if isinstance(text, Grid):
        return rendered(text)
    return _lines([text] if isinstance(text, str) else text)


def _plain(value: Any) -> Any:
    """
    Return *value* with texts and numbers that JSON has.
    """
    match value:
        case str():
            value = hide_passwords(value)
            left_out = len(value) - _JSON_LIMIT
            shown = _SURROGATE.sub(lambda found: visible(found[0]), value[:_JSON_LIMIT])
            return f"{shown}(+{left_out} characters)" if left_out > 0 else shown
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {_plain(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
    return value


def _as_text(value: object) -> str:
    return str(_plain(str(value)))


def _has_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write_result(text: str) -> None:
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def _try_to_write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed before Python began
        return
    with contextlib.suppress(OSError, ValueError):  # full, gone, or closed
        _write(stream, text)


def _write(stream: TextIO, text: str) -> None:
    """
    Write and flush *text*, with escapes for what the encoding of *stream* does not have.
    """
    stream = trusted_stream(stream)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
    stream.flush()
