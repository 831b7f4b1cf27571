"""
sudo with a password: how it reaches sudo, and what a refusal of sudo means.

The password is the first line of standard input: it is in no argument, no file and no log, neither
here nor on the host.  A process that asked for it keeps it in memory, and not in the environment
of the programs that it starts.
"""

import contextlib
import os
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from deploy.errors import CommandFailed, UsageError
from deploy.foreign_text import says
from deploy.inventory.schema import Host, Ssh
from deploy.inventory.secrets import SecretValue

PASSWORD_VARIABLE = "SLIPWAY_SUDO_PASSWORD"  # noqa: S105 - a name
_SUDO = ("sudo", "-n")
# sudo reads a password only where the rule of this very command asks for one; where it does not,
# the command would read it as its own input.  So it is given to `sudo -v`, which runs nothing, and
# the command runs by the credentials that sudo then keeps for children of this shell.  `exit` keeps
# the shell from becoming sudo, whose parent would be another process.
# With timestamp_timeout=0 sudo keeps none.  Such a host is refused: nothing tells for sure whether
# the rule of a command asks (`sudo -l` does not: listpw).
# Tried with sudo 1.9.13, each with ALL, NOPASSWD: ALL and both.
_SCRIPT = """\
IFS= read -r p
printf '%s\\n' "$p" | LC_ALL=C sudo -S -p '' -v || exit 1
if sudo -n -v 2>/dev/null; then unset p; sudo -n "$@"; exit $?; fi
echo 'sudo: it keeps no credentials: timestamp_timeout is 0' >&2
exit 1
"""
# Of sudo and of sudo-rs; their exit status is 1 for every refusal.
_WRONG = re.compile("incorrect|no password was provided|authentication fail", re.IGNORECASE)
_VERDICT_S = 2.5  # pam_unix answers after 2 s where the password is wrong


def keep_password(text: str) -> None:
    """
    Keep *text* in the memory of this process as the password for sudo.
    """
    global _kept
    _kept = SecretValue(text)


_kept: SecretValue | None = None


def kept_password() -> str | None:
    """
    Return the password that this process keeps, for a process of ours that connects too.
    """
    return None if _kept is None else _kept.reveal()


def sudo_password(ssh: Ssh, env: Mapping[str, str] = os.environ) -> str | None:
    """
    Return the password for sudo; None: it is not needed.

    Raises:
        UsageError: It is needed, and there is none.
    """
    if not ssh.sudo_password or ssh.user == "root":
        return None
    password = kept_password() or env.get(PASSWORD_VARIABLE)
    if not password:
        raise UsageError(
            "the password for sudo is missing",
            why=f"ssh.sudo_password is on, and {PASSWORD_VARIABLE} is not set",
            fix=f"set {PASSWORD_VARIABLE}, or run the command on a terminal, which asks for it",
        )
    check_password(password)
    return password


def check_password(password: str) -> None:
    """
    Check that *password* is one line.

    Raises:
        UsageError: It is not.
    """
    if "\n" in password or "\0" in password:
        raise UsageError(
            f"{PASSWORD_VARIABLE} is not a password",
            why="it has more than one line",
            fix=f"set {PASSWORD_VARIABLE} to the password alone",
        )


def under_sudo(argv: Sequence[str], password: str | None) -> tuple[list[str], bytes]:
    """
    Return *argv* and what comes before its standard input, where it begins with `sudo -n`.
    """
    if password is None or tuple(argv[:2]) != _SUDO:
        return list(argv), b""
    return ["sh", "-c", _SCRIPT, "sudo", *argv[2:]], f"{password}\n".encode()


def as_sent(argv: Sequence[str], ssh: Ssh) -> tuple[list[str], bytes]:
    """
    Return *argv* as it is sent to a host of *ssh*, and what comes before its standard input.

    Raises:
        UsageError: It needs the password for sudo, and there is none.
    """
    if tuple(argv[:2]) != _SUDO:
        return list(argv), b""
    return under_sudo(argv, sudo_password(ssh))


def reads_password(line: str) -> bool:
    """
    Return whether the shell command *line* has what `under_sudo` returns with a password.
    """
    return shlex.quote(_SCRIPT) in line


class PasswordAttempts:
    """
    Bounds what a mistyped password costs: one attempt, and no account is locked.

    Until sudo has run a command of some host, one call at a time gives it the password.  Where it
    is wrong, no later call of any host sends it.  Once one host took it, a refusal is of its host
    alone.  Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_accepted = False
        self._wrong: dict[str, CommandFailed] = {}  # by host
        self._next_s = 0.0  # when the next call begins without a verdict, by the monotonic clock

    @contextlib.contextmanager
    def attempt(self, host: str, content: bytes) -> Iterator[None]:
        """
        Surround a call that sends *content*, the password or nothing, to sudo of *host*.

        Raises:
            CommandFailed: The password is known to be wrong.
        """
        if not content:
            yield
            return
        self._wait_for_verdict()
        try:
            self._check(host)
            yield
            # Without an error: sudo ran the command, or refused it for another reason.
            self._is_accepted = self._is_accepted or host not in self._wrong
        finally:
            with self._changed:
                self._next_s = 0.0
                self._changed.notify_all()

    def _wait_for_verdict(self) -> None:
        """
        Wait for the call before; one that does not answer stops nobody.
        """
        with self._changed:
            while not (self._is_accepted or self._wrong):
                left_s = self._next_s - time.monotonic()
                if left_s <= 0:
                    self._next_s = time.monotonic() + _VERDICT_S
                    return
                self._changed.wait(left_s)

    def record(self, refusal: CommandFailed, stderr: str) -> None:
        """
        Remember *refusal* if it is of the password, which *stderr* tells.
        """
        if refusal.host is not None and _WRONG.search(stderr):
            self._wrong[refusal.host] = refusal

    def _check(self, host: str) -> None:
        own = self._wrong.get(host)
        others = [] if self._is_accepted else list(self._wrong.values())
        first = own or next(iter(others), None)
        if first is None:
            return
        raise CommandFailed(
            f"{host}: the password for sudo is wrong",
            why=f"{first.host} refused it, and it is tried once: sudo locks accounts",
            fix=f"run it again with the right one; if {first.host} alone refuses it, leave that "
            "host out with --limit",
            host=host,
        )


ATTEMPTS = PasswordAttempts()  # of this process


def sudo_refusal(host: Host, argv: Sequence[str], status: int, stderr: str) -> CommandFailed | None:
    """
    Return the error of a command that sudo did not run; None: it ran, or is none of sudo.
    """
    last = (stderr.strip().splitlines() or [""])[-1]
    if tuple(argv[:2]) != _SUDO or status != 1 or not last.startswith(("sudo", "Sorry, user ")):
        return None
    user = host.ssh.user
    if "tty" in stderr:
        fix = f"on the host, in sudoers (visudo): Defaults:{user} !requiretty"
    elif "timestamp_timeout" in last:
        fix = f"on the host, in sudoers (visudo): Defaults:{user} timestamp_timeout=1"
    elif host.ssh.sudo_password:
        fix = f"check the password, and on the host the rules of {user}: sudo -l -U {user}"
    else:
        fix = (
            f"on the host, in sudoers: {user} ALL=(ALL) NOPASSWD: ALL; "
            "or set ssh.sudo_password: true in the fleet file"
        )
    refusal = CommandFailed(
        f"{host.name}: sudo refuses {user}", why=says(host.name, last), fix=fix, host=host.name
    )
    if host.ssh.sudo_password:
        ATTEMPTS.record(refusal, stderr)
    return refusal
