"""
One command over one channel: what is sent, what comes back, and how much of it is taken.

Everything that a host sends passes `converse`.  A host that never stops sending is cut off when it
has sent more than the caller wants: its channel is closed, and what came is thrown away.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import paramiko

_PART = 64 * 1024
# Codes of a refused channel: administratively prohibited, what sshd says at MaxSessions, and
# resource shortage.
_REFUSED = (1, 2, 4)
_RETRY_S = 0.05


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


class SessionRefused(Exception):
    """
    The server opens no further session on this connection (MaxSessions); nothing was sent.
    """


def open_session(
    transport: paramiko.Transport, timeout_s: float, *, is_alone: bool = True
) -> paramiko.Channel:
    """
    Return a new session channel of *transport*.

    sshd frees the session of a command some time after its exit status was sent.  With
    `MaxSessions 1` it may therefore refuse the next one for a moment.

    Args:
        is_alone: No other session of this connection is in use: try again until *timeout_s*.

    Raises:
        SessionRefused: Refused, and others are in use or the time has passed.
        paramiko.SSHException, EOFError, OSError: The connection was lost.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        left_s = end_s - time.monotonic()
        try:
            return transport.open_session(timeout=max(left_s, _RETRY_S))
        except paramiko.SSHException as error:
            # paramiko keeps one exception a connection: where two threads are refused, one of them
            # gets a plain SSHException.
            is_refused = getattr(error, "code", _REFUSED[0]) in _REFUSED
            is_late = end_s - time.monotonic() <= _RETRY_S
            is_known = isinstance(error, paramiko.ChannelException) or not is_late
            if not (is_refused and is_known and transport.is_active()):
                raise
            if is_late or not is_alone:
                raise SessionRefused(
                    f"sshd opens no session: {error} (MaxSessions in sshd_config)"
                ) from error
        time.sleep(_RETRY_S)


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
    output = _Stream(channel, channel.recv, limit_bytes)
    errors = _Stream(channel, channel.recv_stderr, limit_bytes)
    # Both are read while content is sent.  They share one window, so that a command that fills one
    # would stall; and paramiko keeps what nobody reads, also from a host that ignores the window.
    readers = [threading.Thread(target=s.read, daemon=True) for s in (output, errors)]
    for reader in readers:
        reader.start()
    _send(channel, content)
    for reader in readers:
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
