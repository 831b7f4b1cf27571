"""
Asks for the password of sudo, once a run.
"""

import getpass
import os
import sys

from deploy.errors import UsageError
from deploy.inventory.schema import Fleet
from deploy.transport.sudo import PASSWORD_VARIABLE


def with_sudo_password(fleet: Fleet) -> Fleet:
    """
    Return *fleet*; where its hosts need a password for sudo that is not set, ask for it first.

    Raises:
        UsageError: No answer (^D), or nobody can answer.
    """
    needs = any(
        host.ssh.sudo_password and host.ssh.user != "root" for host in (*fleet.hosts, *fleet.others)
    )
    if not needs or os.environ.get(PASSWORD_VARIABLE):
        return fleet
    try:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise EOFError
        password = getpass.getpass("password for sudo on the hosts: ")
    except EOFError:
        raise UsageError(
            "the password for sudo is missing",
            why=f"{PASSWORD_VARIABLE} is not set, and nobody is there to ask",
            fix=f"set {PASSWORD_VARIABLE}",
        ) from None
    os.environ[PASSWORD_VARIABLE] = password  # processes of ours that connect read it there
    return fleet
