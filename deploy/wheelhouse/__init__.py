"""
The wheels of a row, downloaded once to this machine and verified by hash: hosts need no index.
"""

from deploy.wheelhouse.fetch import (
    DEFAULT_CACHE,
    cached_lock,
    ensure_lock,
    local_path,
    lock_digest,
    unfetched_lock,
)
from deploy.wheelhouse.lock import CachedWheel, Lock, lock_text

__all__ = [
    "DEFAULT_CACHE",
    "CachedWheel",
    "Lock",
    "cached_lock",
    "ensure_lock",
    "local_path",
    "lock_digest",
    "lock_text",
    "unfetched_lock",
]
