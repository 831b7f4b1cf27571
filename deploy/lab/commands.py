"""
Commands on the machine that runs the lab, each with a deadline.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import LabError

# The PATH of an ordinary user, and of sudo on some machines, lacks the sbin folders.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class CommandResult:
    returncode: int
    stdout: str
    stderr: str

    @property
    def error_line(self) -> str:
        """
        Last line of the command's standard error, else of its output, else its exit status.
        """
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.returncode}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Return this process's environment with the sbin folders on PATH and messages in English.
    """
    path = os.environ.get("PATH", "")
    return os.environ | {"PATH": f"{path}:{PATH}", "LC_ALL": "C"} | dict(extra or {})


def attempt(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = TIMEOUT_S,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> CommandResult:
    """
    Run *argv* and return its result, failed or not.

    Raises:
        LabError: The command is not installed, or ran longer than *timeout_s*.
    """
    words = [str(word) for word in argv]
    try:
        completed = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment(env),
            check=False,
        )
    except FileNotFoundError:
        raise LabError(
            f"the lab needs the command {words[0]}",
            why="it is not installed on this machine",
            fix="inv lab.up: it installs the packages of the lab's commands",
        ) from None
    except subprocess.TimeoutExpired:
        raise LabError(
            f"a command on the lab's machine timed out: {' '.join(words)}",
            why=f"it ran for more than {timeout_s:.0f} s",
            fix="inv lab.down, then inv lab.up",
        ) from None
    return CommandResult(completed.returncode, completed.stdout, completed.stderr)


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = TIMEOUT_S,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    fix: str = "inv lab.down, then inv lab.up",
) -> str:
    """
    Run *argv* and return its output.

    Raises:
        LabError: The command failed; its remedy is *fix*.
    """
    result = attempt(argv, timeout_s=timeout_s, stdin=stdin, env=env)
    if result.returncode:
        words = " ".join(str(word) for word in argv)
        what = f"a command on the lab's machine failed: {words}"
        raise LabError(what, why=result.error_line, fix=fix)
    return result.stdout


def follow(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    fix: str,
) -> None:
    """
    Run *argv*, a command that takes minutes, and call *on_line* with each line of its output.

    Raises:
        LabError: The command failed or ran longer than *timeout_s*; has its last line and *fix*.
    """
    last_line = "it printed nothing"
    with subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(env),
    ) as process:
        assert process.stdout is not None, "stdout=PIPE"
        deadline = threading.Timer(timeout_s, process.kill)
        deadline.start()
        try:
            for line in process.stdout:
                last_line = line.strip() or last_line
                on_line(line.rstrip())
        finally:
            deadline.cancel()
    if process.returncode:
        words = " ".join(str(word) for word in argv)
        killed = f" (killed; its limit is {timeout_s:.0f} s)" if process.returncode < 0 else ""
        what = f"a command on the lab's machine failed: {words}"
        raise LabError(what, why=f"{last_line}{killed}", fix=fix)
