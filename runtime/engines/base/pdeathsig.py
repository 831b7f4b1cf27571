"""
A process that the kernel ends with its parent.

    python -m runtime.engines.base.pdeathsig PARENT PROGRAM ARG…

becomes PROGRAM, which gets SIGTERM when the process PARENT dies.  Imports next to nothing: the
program replaces it at once.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Source: prctl(2); survives execve


def set_pdeathsig(parent: int, signum: signal.Signals) -> bool:
    """
    Have the kernel send *signum* to this process when *parent* dies; False if it already has.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signum) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent


def serve_parent(parent: int) -> bool:
    """
    Live as long as *parent*, and no longer; return False if it has died already.

    SIGTERM and SIGINT are ignored: systemd signals the whole unit, and the API process, or rank 0,
    closes the socket once it has drained.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return set_pdeathsig(parent, signal.SIGKILL)


def main(argv: list[str]) -> None:
    parent, *command = argv
    # SIGTERM and not SIGKILL: the program may have to end processes of its own.
    if set_pdeathsig(int(parent), signal.SIGTERM):
        os.execv(command[0], command)  # noqa: S606 - without a shell on purpose


if __name__ == "__main__":
    main(sys.argv[1:])
