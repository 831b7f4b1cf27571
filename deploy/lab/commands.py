"""
Commands on this very machine, each with a deadline.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import LabError

# A plain user's PATH, and sudo's on some machines, lacks the sbin folders.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """
        What the command said last, in one line.
        """
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.returncode}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Return this process's environment with all the system's commands on PATH and messages in C.
    """
    path = os.environ.get("PATH", "")
    return os.environ | {"PATH": f"{path}:{PATH}", "LC_ALL": "C"} | dict(extra or {})


def attempt(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = TIMEOUT_S,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """
    Run *argv* and return how it ended, whatever that is.

    Raises:
        LabError: It is not installed, or was not done within *timeout_s*.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
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
            fix="inv lab.up installs what is missing",
        ) from None
    except subprocess.TimeoutExpired:
        raise LabError(
            f"{' '.join(words)}",
            why=f"it was not done after {timeout_s:.0f} s",
            fix="inv lab.down, then inv lab.up",
        ) from None
    return Ran(done.returncode, done.stdout, done.stderr)


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
        LabError: It failed; says *fix*.
    """
    ran = attempt(argv, timeout_s=timeout_s, stdin=stdin, env=env)
    if ran.returncode:
        words = " ".join(str(word) for word in argv)
        raise LabError(f"this failed on the lab's machine: {words}", why=ran.complaint, fix=fix)
    return ran.stdout


def follow(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    fix: str,
) -> None:
    """
    Run *argv*, which takes minutes, and hand each line of its output to *on_line*.

    Raises:
        LabError: It failed or was not done within *timeout_s*; says its last line and *fix*.
    """
    last = "it said nothing"
    with subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(env),
    ) as process:
        assert process.stdout is not None, "asked for a pipe"
        deadline = threading.Timer(timeout_s, process.kill)
        deadline.start()
        try:
            for line in process.stdout:
                last = line.strip() or last
                on_line(line.rstrip())
        finally:
            deadline.cancel()
    if process.returncode:
        words = " ".join(str(word) for word in argv)
        killed = f" (killed, after {timeout_s:.0f} s at most)" if process.returncode < 0 else ""
        why = f"{last}{killed}"
        raise LabError(f"this failed on the lab's machine: {words}", why=why, fix=fix)
