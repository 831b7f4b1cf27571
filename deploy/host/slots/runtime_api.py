"""
Readiness and API token of the runtime of a slot.
"""

from __future__ import annotations

from pathlib import Path

from deploy.host.layout import Layout
from deploy.host.sockets import HttpAnswer
from deploy.host.system import System

TOKENS_VARIABLE = "SLIPWAY_API_TOKENS"
READYZ = "/readyz"
MODELS = "/v1/models"  # a public route


def is_ready(system: System, slot: str, timeout_s: float = 2.0) -> bool:
    """
    Return whether the runtime of *slot* answers its readiness check.
    """
    return readiness(system, slot, timeout_s).status == 200


def readiness(system: System, slot: str, timeout_s: float) -> HttpAnswer:
    """
    Return what the runtime of *slot* answers to its readiness check.
    """
    return system.http(slot, "GET", READYZ, timeout_s=timeout_s)


def api_token(layout: Layout) -> str | None:
    """
    Return a token that the runtime accepts: the first of its environment, else the host's own.

    None: it needs none.

    Source: systemd.exec(5), EnvironmentFile=: NAME=VALUE lines, the value perhaps quoted.
    """
    for line in _text(layout.environment).splitlines():
        name, _, value = line.strip().partition("=")
        if name == TOKENS_VARIABLE and (first := value.strip().strip("\"'").split(",")[0].strip()):
            return first
    return _text(layout.host_token).strip() or None


def _text(path: Path) -> str:
    try:
        # A pipe would be waited for; a comment may be in another encoding.
        return path.read_text("utf-8", "replace") if path.is_file() else ""
    except OSError:
        return ""
