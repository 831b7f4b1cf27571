"""
Becomes a program that goes when PARENT does.

    python -m runtime.engines.vllm.pdeathsig PARENT PROGRAM ARG…

Imports next to nothing: it is replaced by the program at once.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Source: prctl(2); survives execve


def main(argv: list[str]) -> None:
    parent, *command = argv
    libc = ctypes.CDLL(None, use_errno=True)
    # SIGTERM and not SIGKILL: the program may have processes of its own to take along.
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == int(parent):  # else it was gone before we asked
        os.execv(command[0], command)  # noqa: S606 - without a shell on purpose


if __name__ == "__main__":
    main(sys.argv[1:])
