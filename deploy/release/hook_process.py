"""
Runs the program of one hook, with a deadline that nothing it does can move.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

OUTPUT_MAX = 4096  # bytes; the last of what the program wrote
_TICK_S = 0.05  # the longest time until an exit, the deadline or a cancellation is noticed
_TERM_S = 2.0  # from SIGTERM at the deadline to SIGKILL
_REAP_S = 1.0  # a process in uninterruptible sleep is left to the kernel after this
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class HookResult:
    """
    How the program of a hook ended.

    Attributes:
        problem: None if it exited with status 0.
        output: The last OUTPUT_MAX bytes of its standard output and standard error.
    """

    problem: str | None
    output: str
    took_s: float


def run_program(
    argv: Sequence[str],
    *,
    stdin: bytes,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    is_cancelled: Callable[[], bool],
) -> HookResult:
    """
    Run *argv* in a session of its own and return how it ended; kill its process group at the end.

    The group gets SIGTERM at the deadline and SIGKILL 2 s later.  A cancellation is a SIGKILL at
    once, and so is the end of this process, whatever ends it.  A child that left the group lives
    on; its output is not waited for.
    """
    began_s = time.monotonic()
    try:
        with _guarded(argv, cwd, env) as guarded:
            problem, output = _attend(guarded.process, stdin, began_s + timeout_s, is_cancelled)
    except OSError as error:  # such as too many open files
        return HookResult(f"cannot be started: {error.strerror}", "", 0.0)
    if problem == _TIMED_OUT:
        problem = f"did not end within {timeout_s:g} s"
    elif problem is None and guarded.process.returncode is not None:
        problem = guarded.failure or _meaning(guarded.process.returncode)
    return HookResult(problem, output.decode(errors="replace"), time.monotonic() - began_s)


@dataclass(slots=True)
class _Guarded:
    """
    A program under its guard, which leads the process group and ends as the program does.

    Attributes:
        failure: Why the program could not be started; known at the end.
    """

    process: subprocess.Popen[bytes]
    failure: str | None = None


@contextmanager
def _guarded(argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Iterator[_Guarded]:
    """
    Run *argv* under `hook_guard`, and kill its process group at the end.

    That end may be a SIGKILL of this process: `alive` is then closed, and the guard kills the
    group.  PR_SET_PDEATHSIG would reach one process alone, and ends with the thread that made it.
    """
    guarded_end, alive = os.pipe()
    failures, failure = os.pipe()
    try:
        guard = [sys.executable, "-I", "-S", _GUARD, str(guarded_end), str(failure)]
        try:
            process = subprocess.Popen(
                [*guard, *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                pass_fds=(guarded_end, failure),
                start_new_session=True,
            )
        finally:
            os.close(guarded_end)
            os.close(failure)
        guarded = _Guarded(process)
        with _killed_at_the_end(process):
            yield guarded
        os.set_blocking(failures, False)
        with contextlib.suppress(BlockingIOError):  # a child in uninterruptible sleep has it open
            if number := os.read(failures, _CHUNK):
                guarded.failure = f"cannot be started: {os.strerror(int(number))}"
    finally:
        os.close(alive)
        os.close(failures)


_GUARD = str(Path(__file__).with_name("hook_guard.py"))
_TIMED_OUT = "timed out"
_CANCELLED = "was ended"
_UNKNOWN = "its exit status is unknown: SIGCHLD is ignored here"


def _meaning(returncode: int) -> str | None:
    if returncode == 0:
        return None
    if returncode > 0:
        return f"exit status {returncode}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-returncode).name}"
    return f"killed by signal {-returncode}"


def _attend(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    until_s: float,
    is_cancelled: Callable[[], bool],
) -> tuple[str | None, bytes]:
    """
    Feed and read *process* until it has exited or has to be killed.

    Returns:
        Why it has to be killed, None if it exited; and the end of its output.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    problem, output, left = None, bytearray(), memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for stream, event in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
        ):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, event)
        while True:
            try:
                if _has_exited(process):
                    break
            except ChildProcessError:  # subprocess would report status 0
                problem = _UNKNOWN
                break
            if is_cancelled():
                problem = _CANCELLED
                break
            if time.monotonic() >= until_s:
                if problem is not None:
                    break
                problem, until_s = _TIMED_OUT, time.monotonic() + _TERM_S
                _signal_group(process, signal.SIGTERM)
            if not selector.get_map():
                time.sleep(_TICK_S)
            for key, _ in selector.select(_TICK_S):
                if key.fileobj is process.stdout:
                    is_open = _read(process.stdout, output)
                else:
                    left = _write(process.stdin, left)
                    is_open = bool(left)
                if not is_open:
                    selector.unregister(key.fileobj)
                    _close(process.stdin if key.fileobj is process.stdin else process.stdout)
        if not process.stdout.closed:
            for _ in range(64):  # what the pipe still has; a child may go on writing
                if not selector.select(0) or not _read(process.stdout, output):
                    break
    return problem, bytes(output[-OUTPUT_MAX:])


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """
    Return True if *process* has exited, without reaping it.

    Until it is reaped, no other process can get its number, which is also that of its group.
    """
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, process.pid, options) is not None


def _read(stream: IO[bytes], output: bytearray) -> bool:
    """
    Append what *stream* has to *output*, which keeps its end; return False at the end of file.
    """
    try:
        chunk = os.read(stream.fileno(), _CHUNK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    output += chunk
    del output[:-OUTPUT_MAX]
    return bool(chunk)


def _write(stream: IO[bytes], data: memoryview) -> memoryview:
    """
    Return the rest of *data*; empty also when the program does not read it.
    """
    try:
        return data[os.write(stream.fileno(), data[:_CHUNK]) :]
    except BlockingIOError:
        return data
    except OSError:
        return data[:0]


@contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        _signal_group(process, signal.SIGKILL)
        for stream in (process.stdin, process.stdout):
            _close(stream)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()
