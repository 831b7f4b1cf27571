"""
Checkouts of this repository, and operators that run tasks in them as processes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploy.errors import CommandFailed, LeaseHeld

_PARTS = ("deploy", "runtime", "templates", "inventories", "requirements", "tests/testinfra")
_FILES = ("tasks.py", "invoke.yaml", "pyproject.toml")
_UNNEEDED = shutil.ignore_patterns("__pycache__")


def copy_checkout(root: Path, target: Path) -> Path:
    """
    Copy the code of the checkout *root* to *target*, without what it has built; return *target*.
    """
    for part in _PARTS:
        shutil.copytree(root / part, target / part, ignore=_UNNEEDED)
    for name in _FILES:
        shutil.copy2(root / name, target / name)
    private = target / ".slipway"
    private.mkdir(mode=0o700)
    return target


@dataclass(frozen=True, slots=True)
class Ended:
    """
    How a command ended.

    Attributes:
        code: Exit code; negative: the signal that ended it.
        document: What it printed with --json; empty without.
    """

    code: int
    took_s: float
    document: dict[str, Any]
    progress: str

    @property
    def error_text(self) -> str:
        """
        What failed and why, in the words of the command; empty without an error.
        """
        error = self.document.get("error") or {}
        return f"{error.get('what')}: {error.get('why')}" if error else ""

    @property
    def fix(self) -> str:
        """
        What to do about the error, in the words of the command; empty without an error.
        """
        return str((self.document.get("error") or {}).get("fix") or "")


class Operator:
    """
    A task that runs in a process of its own, as an operator starts it.

    Args:
        checkout: Folder to run it in.
        words: Task and flags; --json is added.
    """

    def __init__(self, checkout: Path, words: Sequence[str]) -> None:
        self.words = list(words)
        self.began_s = time.monotonic()
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", *words, "--json"],
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env=os.environ | {"SLIPWAY_CWD": str(checkout)},
            start_new_session=True,  # the drill sends it signals, and nothing else does
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """
        Send a signal; one that came too late is no error.
        """
        if self.is_alive:
            self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float) -> Ended:
        """
        Return how it ended.

        Raises:
            CommandFailed: It still runs after *timeout_s*; it has been killed.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CommandFailed(
                f"inv {' '.join(self.words)}: did not end",
                why=f"it ran for more than {timeout_s:.0f} s; its last lines: {self._tail()}",
                fix="run it by hand on the drill's lab: inv drill --keep",
            ) from None
        took_s = time.monotonic() - self.began_s
        self._out.seek(0)
        try:
            document = json.loads(self._out.read() or b"{}")
        except ValueError:
            document = {}
        return Ended(code, took_s, document, self._tail(4000))

    def _tail(self, count: int = 600) -> str:
        self._err.seek(0)
        return self._err.read().decode(errors="replace")[-count:]


def run_task(checkout: Path, words: Sequence[str], timeout_s: float = 300.0) -> Ended:
    """
    Run a task to its end; any exit code is returned.
    """
    return Operator(checkout, words).wait(timeout_s)


def must_run(
    checkout: Path, words: Sequence[str], timeout_s: float = 300.0, *, held_s: float = 0.0
) -> Ended:
    """
    Run a task that the drill itself needs.

    Args:
        held_s: How long the lease of an operator who died may be in force: until then the task is
            tried again.

    Raises:
        CommandFailed: It failed.
    """
    give_up_s = time.monotonic() + held_s
    ended = run_task(checkout, words, timeout_s)
    while ended.code == LeaseHeld.exit_code and time.monotonic() < give_up_s:
        time.sleep(1.0)
        ended = run_task(checkout, words, timeout_s)
    if ended.code:
        raise CommandFailed(
            f"inv {' '.join(words)}: exit {ended.code}",
            why=ended.error_text or ended.progress,
            fix="inv drill --keep, then the same command by hand",
        )
    return ended
