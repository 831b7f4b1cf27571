"""
The interface of a transport.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

OUTPUT_MAX = 2**20  # bytes of each output of a command, where the caller names no other limit


@dataclass(frozen=True, slots=True)
class Completed:
    """
    A command that ended, with its output.

    Attributes:
        took_s: From sending the command to its exit status, in seconds of the controller's
            monotonic clock.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    took_s: float


class Transport(Protocol):
    """
    One host.  Connects at first use and again after a loss; safe to use from several threads.
    """

    @property
    def host(self) -> str: ...

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        check: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed:
        """
        Run *argv* and return what it answered.

        Args:
            output_max: Most bytes of each of its two outputs.

        Raises:
            CommandFailed: It ran and exited non-zero, and *check* is true.
            TransportError: No answer within *timeout_s*, an output longer than *output_max*, or
                no connection: we do not know whether it ran.
            HostKeyMismatch: The host is not the recorded one; nothing was sent.
        """

    def put(self, local: Path, remote: str, *, timeout_s: float, mode: int = 0o644) -> None:
        """
        Copy *local* to *remote*, whole or not at all.

        Raises:
            TransportError: The same as for `run`.
        """

    def close(self) -> None:
        """
        Close the connection; a call that waits for it ends with a TransportError.
        """
