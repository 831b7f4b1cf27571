"""
HTTP to the runtime of a slot, over its Unix socket.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, NamedTuple

from deploy.host.layout import Layout

TOKENS_VARIABLE = "SLIPWAY_API_TOKENS"


class Answer(NamedTuple):
    """
    Attributes:
        status: HTTP status; None when there was no answer.
        body: What was answered, or why there was nothing.
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


def request(
    path: Path,
    method: str,
    target: str,
    *,
    timeout_s: float,
    document: dict[str, Any] | None = None,
    token: str | None = None,
) -> Answer:
    """
    Send one request to the socket at *path*; never raises for what the other side does.
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
        answered = connection.getresponse()
        return Answer(answered.status, answered.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, str(error) or type(error).__name__)
    finally:
        connection.close()


def is_ready(layout: Layout, slot: str, timeout_s: float = 2.0) -> bool:
    """
    Return whether the runtime of *slot* says that it can serve.
    """
    path = layout.runtime_socket(slot)
    return path.exists() and request(path, "GET", "/readyz", timeout_s=timeout_s).status == 200


def api_token(layout: Layout) -> str | None:
    """
    Return the first of the tokens that the runtime accepts; None when it asks for none.

    Source: systemd.exec(5), EnvironmentFile=: NAME=VALUE lines, the value perhaps quoted.
    """
    try:
        lines = layout.environment.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.strip().partition("=")
        if name == TOKENS_VARIABLE:
            return value.strip().strip("\"'").split(",")[0].strip() or None
    return None
