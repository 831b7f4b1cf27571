"""
sudo with a password: how it reaches sudo, and what a refusal of sudo means.

The password is the first line of standard input: it is in no argument, no file and no log, neither
here nor on the host.
"""

import os
from collections.abc import Mapping, Sequence

from deploy.errors import CommandFailed, UsageError
from deploy.foreign_text import says
from deploy.inventory.schema import Host, Ssh

PASSWORD_VARIABLE = "SLIPWAY_SUDO_PASSWORD"  # noqa: S105 - a name
_SUDO = ("sudo", "-n")
# sudo reads the password only where its rules ask for one.  Where they do not, the command would
# read it as its own input: so they are asked first, without cached credentials (-k).
_SCRIPT = """\
IFS= read -r p
if sudo -k -n true 2>/dev/null; then exec sudo -n "$@"; fi
{ printf '%s\\n' "$p"; exec cat; } | exec sudo -k -S -p '' "$@"
"""


def sudo_password(ssh: Ssh, env: Mapping[str, str] = os.environ) -> str | None:
    """
    Return the password for sudo; None: it is not needed.

    Raises:
        UsageError: It is needed, and the variable is not set.
    """
    if not ssh.sudo_password or ssh.user == "root":
        return None
    password = env.get(PASSWORD_VARIABLE)
    if not password:
        raise UsageError(
            "the password for sudo is missing",
            why=f"ssh.sudo_password is on, and {PASSWORD_VARIABLE} is not set",
            fix=f"set {PASSWORD_VARIABLE}, or run the command on a terminal, which asks for it",
        )
    if "\n" in password or "\0" in password:
        raise UsageError(
            f"{PASSWORD_VARIABLE} is not a password",
            why="it has more than one line",
            fix=f"set {PASSWORD_VARIABLE} to the password alone",
        )
    return password


def under_sudo(argv: Sequence[str], password: str | None) -> tuple[list[str], bytes]:
    """
    Return *argv* and what comes before its standard input, where it begins with `sudo -n`.
    """
    if password is None or tuple(argv[:2]) != _SUDO:
        return list(argv), b""
    return ["sh", "-c", _SCRIPT, "sudo", *argv[2:]], f"{password}\n".encode()


def sudo_refusal(host: Host, argv: Sequence[str], status: int, stderr: str) -> CommandFailed | None:
    """
    Return the error of a command that sudo did not run; None: it ran, or is none of sudo.
    """
    last = (stderr.strip().splitlines() or [""])[-1]
    if tuple(argv[:2]) != _SUDO or status != 1 or not last.startswith("sudo"):
        return None
    user = host.ssh.user
    if "tty" in stderr:
        fix = f"on the host, in sudoers (visudo): Defaults:{user} !requiretty"
    elif host.ssh.sudo_password:
        fix = f"check the password, and on the host the rules of {user}: sudo -l -U {user}"
    else:
        fix = (
            f"on the host, in sudoers: {user} ALL=(ALL) NOPASSWD: ALL; "
            "or set ssh.sudo_password: true in the fleet file"
        )
    return CommandFailed(
        f"{host.name}: sudo refuses {user}", why=says(host.name, last), fix=fix, host=host.name
    )
