"""
Configuration files of packages, as dpkg knows them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

_STATUS = "var/lib/dpkg/status"


def untouched(root: str, paths: Sequence[str]) -> tuple[str, ...]:
    """
    Return those of *paths* that are as their package installed them.

    dpkg keeps the MD5 of each in the field Conffiles: ` /etc/haproxy/haproxy.cfg 6a2b...`, with the
    word `obsolete` after it where the package has it no longer.
    """
    status = Path(root) / _STATUS
    if not paths or not status.is_file():
        return ()
    text = status.read_text(encoding="utf-8", errors="replace")
    return tuple(path for path in paths if _md5(Path(root), path) in _installed(text, path))


def _installed(status: str, path: str) -> list[str]:
    return re.findall(rf"^ {re.escape(path)} ([0-9a-f]{{32}})(?: [a-z-]+)?$", status, re.MULTILINE)


def _md5(root: Path, path: str) -> str | None:
    file = root / path.lstrip("/")
    if file.is_symlink() or not file.is_file():
        return None
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
