"""
One command over one channel: what is sent, what comes back, and how much of it is taken.

Everything that a host sends passes `converse`.  A host that never stops sending is cut off when it
has sent more than the caller wants: its channel is closed, and what came is thrown away.
"""

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

import paramiko

_PART = 64 * 1024


class OutputTooLong(Exception):
    """
    The host sent more than *limit_bytes* on one of the two outputs of a command.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"more than {limit_bytes / 2**20:g} MiB of output")
        self.limit_bytes = limit_bytes


class Ended(NamedTuple):
    stdout: str
    stderr: str
    status: int


def converse(
    channel: paramiko.Channel, command: str, content: Iterable[bytes], *, limit_bytes: int
) -> Ended:
    """
    Run *command* on *channel* with *content* as its standard input; the caller has the deadline.

    Works with threads and, in a process that gevent has patched, with greenlets.  Bytes that are
    not UTF-8 become U+FFFD.

    Args:
        limit_bytes: Most bytes of each of the two outputs.

    Raises:
        OutputTooLong: The command wrote more; the channel is closed.
        paramiko.SSHException, EOFError, OSError: The channel closed before the exit status.
    """
    channel.exec_command(command)
    errors = _Stream(channel, channel.recv_stderr, limit_bytes)
    # Both streams share one window: read them side by side, or a command that fills one stalls.
    reader = threading.Thread(target=errors.read, daemon=True)
    reader.start()
    _send(channel, content)
    output = _Stream(channel, channel.recv, limit_bytes)
    output.read()
    reader.join()
    for stream in (output, errors):
        if stream.is_too_long:
            raise OutputTooLong(limit_bytes)
        if stream.error is not None:
            raise stream.error
    status = channel.recv_exit_status()
    if status == -1:
        raise paramiko.SSHException("the connection closed before the exit status")
    return Ended(output.text, errors.text, status)


class _Stream:
    """
    One output of the command, read to its end or to the limit.
    """

    def __init__(
        self, channel: paramiko.Channel, receive: Callable[[int], bytes], limit_bytes: int
    ) -> None:
        self._channel, self._receive, self._limit_bytes = channel, receive, limit_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self.is_too_long = False
        self.error: Exception | None = None

    @property
    def text(self) -> str:
        return b"".join(self._parts).decode(errors="replace")

    def read(self) -> None:
        try:
            while part := self._receive(_PART):
                self._size += len(part)
                if self._size > self._limit_bytes:
                    self.is_too_long = True
                    self._parts.clear()
                    self._channel.close()
                    return
                self._parts.append(part)
        except Exception as error:  # raised in the thread that waits for the command
            self.error = error


def _send(channel: paramiko.Channel, content: Iterable[bytes]) -> None:
    try:
        for part in content:
            channel.sendall(part)
        channel.shutdown_write()
    except OSError:
        # A command may end before it has read its whole input; its status tells why.  So may one
        # whose output was too long.
        if not (channel.closed or channel.exit_status_ready()):
            raise
