"""
The name of who holds a lease.
"""

import getpass
import os
import secrets
import socket

from deploy.errors import UsageError


def actor() -> str:
    """
    Return who acts, as journals name them: user@machine.

    Raises:
        UsageError: The user has no name; ssh(1) would refuse to run as well.
    """
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # OSError: since Python 3.13
        raise UsageError(
            f"user id {os.getuid()} has no name on this machine",
            why="it has no passwd entry, and neither LOGNAME nor USER is set",
            fix="export LOGNAME=NAME, or add the user to /etc/passwd: useradd -u ID NAME",
        ) from None


def owner() -> str:
    """
    Return the owner of the leases of one run; two runs of one person are two owners.
    """
    return f"{actor()}:{os.getpid()}:{secrets.token_hex(4)}"
