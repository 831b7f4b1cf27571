"""
Unix sockets: HTTP to a runtime, and HAProxy's runtime socket.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, NamedTuple


class HttpAnswer(NamedTuple):
    """
    Attributes:
        status: HTTP status; None when there was no answer.
        body: Body of the answer, or why there was none.
    """

    status: int | None
    body: str


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("slipway", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


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
    """
    headers = {"Connection": "close"}
    body = None
    if document is not None:
        body = json.dumps(document).encode()
        headers["Content-Type"] = "application/json"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = _Connection(path, timeout_s)
    try:
        connection.request(method, target, body=body, headers=headers)
        response = connection.getresponse()
        return HttpAnswer(response.status, response.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        return HttpAnswer(None, str(error) or type(error).__name__)
    finally:
        connection.close()


def send_line(path: Path, line: str, timeout_s: float) -> str:
    """
    Send *line* to the socket at *path* and return everything that it answers.

    Raises:
        OSError: The socket is missing, refuses, or does not answer within *timeout_s*.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(line.encode() + b"\n")
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")
