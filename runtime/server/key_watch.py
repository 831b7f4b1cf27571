"""
Watches the file of API keys: a change is in force within a few seconds, without a restart.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from runtime.plain_files import open_plain_file
from runtime.server.key_file import MAX_FILE_BYTES, KeyRing, parse_keys

log = logging.getLogger("runtime.keys")

POLL_S = 1.0


class KeyWatch:
    """
    The keys of a file, as of the last time that it was valid.

    Without a file there are no keys, and the runtime may be open to everybody.  Once there was
    one, that never happens again: where the file is gone or broken the last good keys stay in
    force.  A file that is broken at the start accepts no key.

    Attributes:
        ring: None: there was never a file.
        problem: Why the file is not in force; None: it is, or there is none.

    Args:
        path: None: no file is watched.
        host_key: File with the hash of the token that the host program uses for its checks.
        on_change: Called with the keys after each look that changed them or the problem.
    """

    def __init__(
        self,
        path: Path | None,
        host_key: Path | None = None,
        on_change: Callable[["KeyWatch"], None] = lambda watch: None,
    ) -> None:
        self.ring: KeyRing | None = None
        self.problem: str | None = None
        self.host_hash: str | None = None
        self._path, self._host_key, self._on_change = path, host_key, on_change
        self._seen: tuple[int, ...] | None = None
        self.look()

    async def run(self) -> None:
        """
        Look at the file each second, without end.
        """
        while self._path is not None:
            await asyncio.sleep(POLL_S)
            try:
                if self._is_changed():
                    await asyncio.to_thread(self.look)
            except Exception:  # a watch that ended would keep revoked keys in force
                log.exception("keys.look_failed")

    def look(self) -> None:
        """
        Read the file, if it changed since the last look.
        """
        if self._path is None or not self._is_changed():
            return
        self._seen = _identity(self._path)
        before = (self.ring, self.problem)
        try:
            self.ring, self.problem = parse_keys(_read(self._path)), None
        except FileNotFoundError:
            self.problem = "it is gone" if self.ring is not None else None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._seen = None  # too many open files, say: the next look reads it
            self.problem = str(error)
            self.ring = self.ring or KeyRing()
        if self._host_key is not None and self.ring is not None:
            self.host_hash = _host_hash(self._host_key) or self.host_hash
        if (self.ring, self.problem) != before:
            self._tell()
            self._on_change(self)

    def _tell(self) -> None:
        if self.problem is None and self.ring is not None:
            log.info("keys.loaded version=%d tokens=%d", self.ring.version, len(self.ring))
        elif self.problem is not None:
            kept = self.ring.version if self.ring else 0
            log.error("keys.rejected file=%s why=%s kept=%d", self._path, self.problem, kept)

    def _is_changed(self) -> bool:
        assert self._path is not None
        if self._seen is None:
            return True
        return _identity(self._path) != self._seen


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.lstat()
    except OSError as error:
        return (error.errno or 0,)
    # A replaced file has another inode; the time of the inode changes with owner and mode, too.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> bytes:
    with open_plain_file(path, follows_links=False) as file:
        return file.read(MAX_FILE_BYTES + 1)


def _host_hash(path: Path) -> str | None:
    try:
        text = _read(path)[:64].decode("ascii")
    except (OSError, ValueError):
        return None
    return text if len(text) == 64 else None
