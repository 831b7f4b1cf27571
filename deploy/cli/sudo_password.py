"""
Asks for the password of sudo, once a run, and keeps it out of the environment of other programs.
"""

import getpass
import sys
from collections.abc import MutableMapping

from deploy.errors import UsageError
from deploy.inventory.schema import Fleet
from deploy.transport.sudo import (
    PASSWORD_VARIABLE,
    check_password,
    keep_password,
    kept_password,
)


def take_sudo_password(env: MutableMapping[str, str]) -> None:
    """
    Take the variable out of *env*, and keep what it says: no program that is started gets it.
    """
    given = env.pop(PASSWORD_VARIABLE, None)
    if given:
        keep_password(given)


def with_sudo_password(fleet: Fleet) -> Fleet:
    """
    Return *fleet*; where its hosts need a password for sudo that is not kept, ask for it first.

    Raises:
        UsageError: No answer (^D), nobody can answer, or the variable has more than one line.
    """
    if kept := kept_password():
        check_password(kept)
        return fleet
    needs = any(
        host.ssh.sudo_password and host.ssh.user != "root" for host in (*fleet.hosts, *fleet.others)
    )
    if not needs:
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
    check_password(password)
    keep_password(password)
    return fleet
