"""
What a verb may touch beside files: other programs and the clock.  Tests give their own.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from deploy.host.layout import Layout
from deploy.host.rpc import HostError, one_line

Result = TypeVar("Result")


class ProgramResult(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Runner:
    """
    Runs programs of the host, each with a deadline.
    """

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> ProgramResult:
        """
        Run *argv* and return what it answered, whatever its exit status.

        Raises:
            HostError: The program is missing, or was killed at its deadline.
        """
        environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", **(env or {})}
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                env=environment,
                check=False,
            )
        except FileNotFoundError:
            raise HostError(
                "PreconditionError",
                f"{argv[0]} is not installed",
                f"it was asked for: {' '.join(argv)[:200]}",
                "inv provision",
            ) from None
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace")
            raise HostError(
                "CommandFailed",
                f"{' '.join(argv[:3])} did not end within {timeout_s:.0f} s",
                one_line(said) or "it said nothing",
                "inv status, and look at the load of the host",
            ) from None
        return ProgramResult(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )


class Clock:
    """
    The clocks of the host.
    """

    def wall_s(self) -> float:
        """
        Return seconds since 1970; may be set back and forth.
        """
        return time.time()

    def steady_s(self) -> float:
        """
        Return seconds since boot, suspension included; the same for every process.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class System(NamedTuple):
    layout: Layout
    runner: Runner
    clock: Clock

    def boot_id(self) -> str:
        """
        Return the id that the kernel gave this boot.
        """
        return self.layout.boot_id.read_text().strip()

    def poll_until(
        self, probe: Callable[[], Result | None], timeout_s: float, poll_s: float
    ) -> Result | None:
        """
        Call *probe* until it returns a value, and return that; None after *timeout_s*.

        Calls *probe* at least once.
        """
        until_s = self.clock.steady_s() + timeout_s
        while True:
            result = probe()
            if result is not None:
                return result
            left_s = until_s - self.clock.steady_s()
            if left_s <= 0:
                return None
            self.clock.sleep(min(poll_s, left_s))


def utc(wall_s: float) -> str:
    """
    Return *wall_s* as ISO 8601 in UTC, with milliseconds.
    """
    whole = int(wall_s)
    millis = int((wall_s - whole) * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{millis:03d}Z"
