"""
The transport of simulated hosts: one Unix socket a command in progress, used again afterwards.
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from deploy.errors import TransportError
from deploy.transport.base import OUTPUT_MAX, Completed


class Wire:
    """
    The connections to the process of the simulated hosts.

    Attributes:
        opened: Connections so far: as many as there were commands at once.
        sent, received: Bytes.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: deque[socket.socket] = deque()
        self.opened = self.sent = self.received = 0

    def ask(self, host: str, verb: str, document: bytes, timeout_s: float) -> str:
        """
        Return the answer of *host*.

        Raises:
            OSError: None came in time.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(self._path)
            self.opened += 1
        connection.settimeout(timeout_s)
        try:
            connection.sendall(f"{host} {verb} {len(document)}\n".encode() + document)
            data = _answer(connection)
        except OSError:
            connection.close()
            raise
        self._idle.append(connection)
        self.sent += len(document)
        self.received += len(data)
        return data.decode()

    def close(self) -> None:
        while self._idle:
            with contextlib.suppress(OSError):
                self._idle.pop().close()


class SimulatedTransport:
    """
    One simulated host, as `deploy.transport.base.Transport`.

    Attributes:
        commands: Run over this transport.
    """

    def __init__(self, wire: Wire, host: str) -> None:
        self._wire, self._host = wire, host
        self.commands = 0

    @property
    def host(self) -> str:
        return self._host

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        check: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed:
        started_s = time.monotonic()
        self.commands += 1
        try:
            answer = self._wire.ask(self.host, argv[-1], stdin or b"", timeout_s)
        except OSError as error:
            raise TransportError(
                f"{self.host}: no answer to {argv[-1]}",
                why=str(error) or type(error).__name__,
                fix="look at what the process of the simulated hosts printed",
                host=self.host,
            ) from error
        return Completed(tuple(argv), 0, answer, "", time.monotonic() - started_s)

    def put(self, local: Path, remote: str, *, timeout_s: float, mode: int = 0o644) -> None:
        raise NotImplementedError("simulated hosts have everything that a bundle needs")

    def close(self) -> None:
        """
        Do nothing: the connections are not of one host.
        """


def _answer(connection: socket.socket) -> bytes:
    data = bytearray()
    while b"\n" not in data:
        data += _some(connection)
    line, _, rest = data.partition(b"\n")
    body = bytearray(rest)
    while len(body) < int(line):
        body += _some(connection)
    return bytes(body)


def _some(connection: socket.socket) -> bytes:
    if not (part := connection.recv(1 << 16)):
        raise ConnectionResetError("the connection was closed")
    return part
