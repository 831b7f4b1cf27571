"""
Follows the journals of lab hosts from outside: their disks are folders of this machine.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from deploy.drill.lines import SeenLine


class JournalFollower:
    """
    Returns the lines that journals get from now on.

    Args:
        paths: Journal of each host.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._at: dict[str, tuple[int, int]] = {}  # inode and offset of what was read
        self._last_seq: dict[str, int] = {}
        for host in self._paths:
            self._last_seq[host] = 0
            self._new_entries(host)

    def read(self) -> list[SeenLine]:
        """
        Return the new lines of all hosts; cheap where there is none.
        """
        now_s = time.monotonic()
        return [
            SeenLine(host, str(entry.get("step")), str(entry.get("phase")), now_s)
            for host in self._paths
            for entry in self._new_entries(host)
        ]

    def _new_entries(self, host: str) -> list[dict[str, object]]:
        path = self._paths[host]
        try:
            status = path.stat()
        except OSError:
            return []  # not written yet, or the host is between two boots
        inode, offset = self._at.get(host, (status.st_ino, 0))
        if inode != status.st_ino or status.st_size < offset:
            offset = 0  # it was rotated: the sequence number tells what is new
        if status.st_size == offset:
            return []
        with path.open("rb") as file:
            file.seek(offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._at[host] = (status.st_ino, offset + len(whole) + 1 if whole else offset)
        entries = []
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                seq = int(entry["seq"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a crash
            if seq > self._last_seq[host]:
                self._last_seq[host] = seq
                entries.append(entry)
        return entries
