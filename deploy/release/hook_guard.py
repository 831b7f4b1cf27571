"""
Runs the program of one hook, and ends its process group when the operator's process ends.

A program of its own, which imports nothing of ours: `hook_process` starts it as the leader of the
group.  It reads a pipe whose other end only the operator has.  The kernel closes that end with the
operator's process, also at a SIGKILL.

Arguments: descriptor of that pipe; descriptor for the errno of a program that cannot be started;
the program and its arguments.
"""

import _thread
import os
import resource
import signal
import sys


def main(operator: int, failure: int, argv: list[str]) -> None:
    """
    Run *argv* and end as it does.
    """
    os.set_inheritable(operator, False)
    os.set_inheritable(failure, False)
    # The program gets the group's signals too, and decides what they mean.
    outlived = [number for number in _OUTLIVED if signal.getsignal(number) is not signal.SIG_IGN]
    for number in outlived:
        signal.signal(number, lambda *_: None)
    child = os.fork()
    if child == 0:
        _execute(failure, outlived, argv)
    _let_go(failure)
    _thread.start_new_thread(_kill_after, (operator,))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


# All that can be caught and is no fault of the process itself.
_OUTLIVED = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
}


def _execute(failure: int, outlived: list[signal.Signals], argv: list[str]) -> None:
    for number in (*outlived, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores the last two
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell reads the arguments of a hook
    except OSError as error:
        os.write(failure, str(error.errno).encode())
    finally:
        os._exit(127)


def _let_go(failure: int) -> None:
    """
    Close what belongs to the program, so that the operator notices when it closes them.
    """
    os.close(failure)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def _kill_after(operator: int) -> None:
    os.read(operator, 1)  # nothing is ever written: this returns at the end of the pipe
    os.killpg(0, signal.SIGKILL)


def _end_by(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
