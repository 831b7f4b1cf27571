"""
Notifies systemd: READY=1, STATUS=, STOPPING=1, WATCHDOG=1.  Source: sd_notify(3).

Without NOTIFY_SOCKET every call is a no-op, so the runtime also runs by hand.
"""

import os
import re
import socket
from collections.abc import Mapping

from runtime.contract.errors import ConfigError
from runtime.contract.visible_text import visible

_STATUS_LIMIT = 800  # characters; systemd ignores a message of more than 4,096 bytes


class Notifier:
    """
    Sends to the service manager that started this process.

    Args:
        address: NOTIFY_SOCKET; a leading "@" is an abstract socket. None: no notifications.
        watchdog_s: WATCHDOG_USEC in seconds; None where the unit has no watchdog.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        self._socket = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Notifier":
        """
        Read systemd's variables; WATCHDOG_PID may name another process.

        Raises:
            ConfigError: WATCHDOG_USEC is no number of microseconds.
        """
        watchdog_s = None
        if env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            usec = env.get("WATCHDOG_USEC") or "0"
            if not re.fullmatch("[0-9]{1,18}", usec):
                raise ConfigError(
                    f"environment: WATCHDOG_USEC={usec[:80]}",
                    why="should be a number of microseconds, as systemd sets it",
                    fix="unset it, or start slipway-runtime@SLOT.service",
                )
            watchdog_s = int(usec) / 1e6 or None
        return cls(env.get("NOTIFY_SOCKET"), watchdog_s)

    def status(self, text: str) -> None:
        self._send(f"STATUS={_one_line(text)}")

    def ready(self, text: str) -> None:
        self._send(f"READY=1\nSTATUS={_one_line(text)}")

    def stopping(self, text: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={_one_line(text)}")

    def watchdog(self) -> None:
        # A manager that is busy gets the next one: requests must not wait for it.
        self._send("WATCHDOG=1", wait_s=0.0)

    def _send(self, message: str, *, wait_s: float = 1.0) -> None:
        if self._socket is None or self._address is None:
            return
        self._socket.settimeout(wait_s)
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return  # a failed notification must not drop requests


def _one_line(text: str) -> str:
    r"""
    Return *text* for STATUS=: each line of a message is an assignment, so it has no end of a line.

    With it, `MAINPID=1` or `EXTEND_TIMEOUT_USEC=...` in the name of a model or in an error would
    be obeyed.
    """
    return visible("; ".join(line.strip() for line in text.split("\n")), limit=_STATUS_LIMIT)


class Watchdog:
    """
    Forwards the engine's beats to systemd, at most four in each watchdog period.

    It has no timer: if the engine stops beating, no notification is sent.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._pause_s = None if notifier.watchdog_s is None else notifier.watchdog_s / 4
        self._last_s = -float("inf")

    def beat(self, now_s: float) -> None:
        if self._pause_s is not None and now_s - self._last_s >= self._pause_s * 0.9:
            self._last_s = now_s
            self._notifier.watchdog()
