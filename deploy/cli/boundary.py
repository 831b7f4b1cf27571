"""
Turns every exception into what failed, why and what to do.

A person can cause most of these: a full disk, a folder where a file should be, a file in another
encoding, a program that is not installed.  What is left is a defect of slipway and says so.  The
traceback is kept in a file, and with `--debug` it is printed.
"""

import contextlib
import errno
import logging
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from deploy.cli.terminal import (
    end_quietly,
    fail,
    print_progress,
    print_traceback,
    traceback_text,
)
from deploy.errors import DeployError
from deploy.private_files import private_directory, write_private

_TRACEBACK = Path(__file__).parents[2] / ".slipway" / "traceback.txt"
_NO_HOME = "determine home directory"  # of Path.expanduser
_AGAIN = "run it again with --debug, which prints the traceback"


class Interrupted(DeployError):
    """
    ^C, or SIGINT from another program.
    """

    exit_code = 130  # as a shell reports SIGINT


@contextlib.contextmanager
def error_boundary(*, as_json: bool, as_line: bool = False) -> Iterator[None]:
    """
    Tell any error of the block once, and exit with its code.

    Args:
        as_json: Tell it as a JSON document on standard output.
        as_line: That document is one line.
    """
    try:
        yield
    except KeyboardInterrupt:
        _end_at_the_next_interrupt()
        _report_interruption(as_json=as_json, as_line=as_line)
    except BrokenPipeError as error:
        if error.filename is None and _is_gone(sys.stdout):
            end_quietly()
        _report(error, as_json=as_json, as_line=as_line)
    except Exception as error:
        _report(error, as_json=as_json, as_line=as_line)


def _end_at_the_next_interrupt() -> None:
    """
    Let a second ^C end the process at once and without a traceback.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _report_interruption(*, as_json: bool, as_line: bool) -> NoReturn:
    if as_json:
        error = Interrupted(
            "interrupted",
            why="^C, SIGTERM or SIGHUP came before the task had ended",
            fix="inv status shows what the hosts serve; then run it again",
        )
        fail(error, as_json=True, as_line=as_line)
    print_progress("interrupted")
    sys.exit(Interrupted.exit_code)


def _report(error: Exception, *, as_json: bool, as_line: bool) -> NoReturn:
    if is_debugging():
        print_traceback(error)
    elif not isinstance(error, DeployError):
        with contextlib.suppress(OSError, DeployError):
            private_directory(_TRACEBACK.parent)
            write_private(_TRACEBACK, traceback_text(error))
    fail(_explained(error), as_json=as_json, as_line=as_line)


def _explained(error: Exception) -> DeployError:
    try:
        return explain(error)
    except Exception:  # an exception whose own text raises, or that lacks what its class promises
        return _defect(type(error).__name__, "it could not be explained")


def is_debugging() -> bool:
    """
    Return whether `--debug` or INVOKE_DEBUG was given; both switch on invoke's own log.
    """
    return logging.getLogger("invoke").isEnabledFor(logging.DEBUG)


def explain(error: Exception) -> DeployError:
    """
    Return *error* with what failed, why and a remedy; a DeployError has them already.
    """
    match error:
        case DeployError():
            return error
        case OSError():
            return _os_error(error)
        case UnicodeError():
            return DeployError(
                f"{_file_of(error) or 'a text'}: is not UTF-8 text",
                why=str(error),
                fix="save it as UTF-8, or set LC_ALL=C.UTF-8",
            )
        case EOFError():
            return DeployError(
                "the input ended before the answer",
                why="standard input is closed or empty",
                fix="run it on a terminal, or with --yes where the task has it",
            )
        case RuntimeError() if _NO_HOME in str(error):
            return DeployError(
                "this user has no home directory",
                why="HOME is not set, and the user has no passwd entry with one",
                fix="export HOME with a directory of this user, as in a job for CI",
            )
        case subprocess.TimeoutExpired():
            program = error.cmd if isinstance(error.cmd, str) else Path(str(error.cmd[0])).name
            return DeployError(
                f"{program}: did not end",
                why=f"it ran longer than {error.timeout:.0f} s",
                fix=f"see what {program} waits for, then run this again",
            )
    return _defect(type(error).__name__, f"{str(error) or 'no message'}, in {_place_of(error)}")


def _defect(kind: str, why: str) -> DeployError:
    return DeployError(
        f"unexpected {kind}: this is a defect of slipway",
        why=why,
        fix=f"report it with {_TRACEBACK.parent.name}/{_TRACEBACK.name}; {_AGAIN}",
    )


def _os_error(error: OSError) -> DeployError:
    where = _file_of(error) or "this machine"
    why = error.strerror or str(error)
    return DeployError(where, why=why, fix=_remedy(error, where))


def _remedy(error: OSError, where: str) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"free space where {where} is, then run this again"
        case errno.EISDIR:
            return "name a file, not a folder"
        case errno.ENOTDIR:
            return "a part of the path is a file: name a folder"
        case errno.EACCES | errno.EPERM:
            return f"give the user who runs this access to {where}"
        case errno.EROFS:
            return "it lies on a read-only filesystem: choose another place"
        case errno.ENOENT if Path(where).is_symlink():
            return f"it is a link to nothing: close the editor that left it, or delete {where}"
        case errno.ENOENT if "/" not in where:
            return f"install {where}, or put it on PATH"
        case errno.ENOENT:
            return f"create {where}, or correct the path"
        case errno.EMFILE | errno.ENFILE:
            return "raise the limit of open files: ulimit -n 4096"
        case errno.ENOMEM:
            return "free memory on this machine, then run this again"
    return _AGAIN


def _file_of(error: BaseException) -> str | None:
    """
    Return the file that *error* is about; a failed write does not name it, so ask the frames.
    """
    named = getattr(error, "filename", None)
    if named is not None and not isinstance(named, int):
        return named.decode(errors="replace") if isinstance(named, bytes) else str(named)
    for frame in _frames(error):
        for name in ("self", "path", "target", "file", "file_or_filename"):
            if isinstance(value := frame.f_locals.get(name), Path):
                return str(value)
    return None


def _frames(error: BaseException) -> list[FrameType]:
    """
    Return the frames of *error*, the innermost first.
    """
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)][::-1]


def _place_of(error: BaseException) -> str:
    steps = traceback.extract_tb(error.__traceback__)
    return f"{steps[-1].name} ({Path(steps[-1].filename).name})" if steps else "an unknown place"


def _is_gone(stream: object) -> bool:
    try:
        stream.flush()  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):
        return True
    return False
