"""
Sockets: HTTP to a runtime and to the public port, and HAProxy's runtime socket.

A runtime may be hostile.  A deadline covers a whole exchange, every answer has a size limit, and
whatever a runtime sends is an `HttpAnswer`, never an exception.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deploy.host.trusted_files import read_plain

if TYPE_CHECKING:
    import ssl

# Largest accepted body of an answer, in bytes, by path; another path has the default.
BODY_LIMITS = {"/metrics": 4 << 20, "/generate": 1 << 20, "/v1/chat/completions": 1 << 20}
BODY_LIMIT = 64 << 10
HEAD_LIMIT = 64 << 10  # bytes of status line and headers, informational answers (1xx) included
HAPROXY_LIMIT = 4 << 20  # bytes of an answer on HAProxy's runtime socket
VERSION_HEADER = "x-slipway-version"  # of every answer of a runtime
_CHUNK = 1 << 16
_BACKLOG_POLL_S = 0.01


class HttpAnswer(NamedTuple):
    """
    Attributes:
        status: HTTP status; None when there was no answer.
        body: Body of the answer, or why there was none.
        version: Version of the release that answered; None without such a header.
    """

    status: int | None
    body: str
    version: str | None = None


class Deadline:
    """
    The end of an exchange on the monotonic clock, *timeout_s* from now.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """
        Return the seconds that are left.

        Raises:
            TimeoutError: None are left.
        """
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no complete answer within {self._timeout_s:g} s")
        return left_s


class _Bounded(io.RawIOBase):
    """
    The bytes that arrive on *connection*: at most *limit*, and none after *deadline*.
    """

    def __init__(self, connection: socket.socket, deadline: Deadline, limit: int) -> None:
        self._connection, self._deadline = connection, deadline
        self._limit = self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise OSError(f"the answer has more than {self._limit} bytes")
        # The time that is left shrinks with each call, so that a dripping sender gains nothing.
        self._connection.settimeout(self._deadline.left_s())
        size = self._connection.recv_into(buffer, min(len(buffer), self._left))
        self._left -= size
        return size

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        """
        Return the reader that `http.client` asks of a socket.
        """
        return io.BufferedReader(self, _CHUNK)


def http_request(
    path: Path,
    method: str,
    target: str,
    *,
    timeout_s: float,
    document: dict[str, Any] | None = None,
    token: str | None = None,
) -> HttpAnswer:
    """
    Send one request to the socket at *path*; a failure of the other side is an answer too.

    Args:
        timeout_s: For the whole exchange: connection, request, headers and body.
    """

    def connected(deadline: Deadline) -> socket.socket:
        return connect(path, deadline)

    return _exchange(connected, method, target, timeout_s, document, token)


def tcp_request(
    port: int,
    method: str,
    target: str,
    *,
    timeout_s: float,
    document: dict[str, Any] | None = None,
    token: str | None = None,
    certificate: Path | None = None,
) -> HttpAnswer:
    """
    Send one request to *port* of this host, as `http_request` does to a socket.

    Args:
        certificate: PEM file whose first certificate the port has to show; None: plain HTTP.
    """

    def connected(deadline: Deadline) -> socket.socket:
        if certificate is None:
            return socket.create_connection(("127.0.0.1", port), deadline.left_s())
        return _verified(port, certificate, deadline)

    return _exchange(connected, method, target, timeout_s, document, token)


def _verified(port: int, certificate: Path, deadline: Deadline) -> socket.socket:
    from deploy.host import tls

    before = _certificates(certificate)
    secured = _secured(port, deadline)
    shown = tls.shown(secured)
    # Read again: it may have been replaced since, and the handshake have shown either one.
    if shown in before or shown in _certificates(certificate):
        return secured
    secured.close()
    raise OSError(f"the port shows another certificate than {certificate}")


def _certificates(path: Path) -> list[bytes]:
    """
    Return the certificate in *path* and the one that is about to replace it, in DER.

    HAProxy serves the next one from just before it is the file, also if that call has died.
    """
    from deploy.host import tls

    found = []
    # The next one first: it becomes the file, and never the other way round.
    for one in (path.with_name(tls.NEXT_NAME), path):
        with suppress(FileNotFoundError, ValueError):
            found.append(tls.first_certificate(read_plain(one).decode("ascii")))
    return found


def served_certificate(port: int, timeout_s: float) -> bytes:
    """
    Return the certificate, in DER, that *port* of this host shows.

    Args:
        timeout_s: For connection and handshake together.

    Raises:
        OSError: The port does not complete a handshake.
    """
    from deploy.host import tls

    with _secured(port, Deadline(timeout_s)) as connection:
        return tls.shown(connection)


def _secured(port: int, deadline: Deadline) -> ssl.SSLSocket:
    from deploy.host import tls

    connection = socket.create_connection(("127.0.0.1", port), deadline.left_s())
    try:
        connection.settimeout(deadline.left_s())  # of the whole handshake
    except BaseException:
        connection.close()
        raise
    return tls.wrap(connection)


def _exchange(
    connected: Callable[[Deadline], socket.socket],
    method: str,
    target: str,
    timeout_s: float,
    document: dict[str, Any] | None,
    token: str | None,
) -> HttpAnswer:
    limit = BODY_LIMITS.get(target, BODY_LIMIT)
    try:
        deadline = Deadline(timeout_s)
        with connected(deadline) as connection:
            connection.settimeout(deadline.left_s())
            connection.sendall(_request(method, target, document, token))
            # Twice the limit: chunks of one byte would need six, and no server of ours sends them.
            bounded = _Bounded(connection, deadline, HEAD_LIMIT + 2 * limit)
            with closing(http.client.HTTPResponse(bounded, method=method)) as response:  # type: ignore[arg-type]
                response.begin()
                version = response.getheader(VERSION_HEADER)
                body = response.read(limit + 1)
        if len(body) > limit:
            return HttpAnswer(None, f"the body of {target} has more than {limit} bytes")
        return HttpAnswer(response.status, body.decode(errors="replace"), version)
    except Exception as error:  # whatever the parser of http.client meets in garbage
        return HttpAnswer(None, str(error)[:300] or type(error).__name__)


def send_line(path: Path, line: str, timeout_s: float) -> str:
    """
    Send *line* to HAProxy's runtime socket at *path* and return everything that it answers.

    Raises:
        OSError: The socket is missing, refuses, does not answer within *timeout_s*, answers more
            than HAPROXY_LIMIT bytes, or closes in the middle of its answer.
    """
    deadline = Deadline(timeout_s)
    with connect(path, deadline) as connection:
        connection.settimeout(deadline.left_s())
        connection.sendall(line.encode() + b"\n")
        with io.BufferedReader(_Bounded(connection, deadline, HAPROXY_LIMIT), _CHUNK) as reader:
            answer = reader.read().decode(errors="replace")
    # Source: HAProxy 2.6 management guide, 9.3: an empty line ends each answer.
    if answer != "\n" and not answer.endswith("\n\n"):
        raise ConnectionError(f"{path} closed before the end of its answer")
    return answer


def connect(path: Path, deadline: Deadline) -> socket.socket:
    """
    Return a connection to the socket at *path*, whose directory only this user may change.

    The check and the connection use one open file, so that nothing can be exchanged in between.

    Raises:
        OSError: *path* is no socket, another user may change its directory, or nobody accepts.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"another user may change {path.parent}: inv provision")
        found = os.open(path.name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(f"{path} is no socket")
        return _connect_to(f"/proc/self/fd/{found}", deadline)
    finally:
        os.close(found)


def _connect_to(address: str, deadline: Deadline) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            connection.settimeout(deadline.left_s())
            try:
                connection.connect(address)
            except BlockingIOError:  # the listener's queue is full
                time.sleep(_BACKLOG_POLL_S)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _request(method: str, target: str, document: dict[str, Any] | None, token: str | None) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    head = [f"{method} {target} HTTP/1.1", "Host: slipway", "Connection: close"]
    if document is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if token:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*head, "", ""]).encode() + body
