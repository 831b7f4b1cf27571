"""
The wheels of a row, downloaded once to this machine and verified by hash: hosts need no index.
"""

from deploy.wheelhouse.fetch import ensure_lock, lock_digest
from deploy.wheelhouse.lock import CachedWheel, Lock, lock_text

__all__ = ["Lock", "CachedWheel", "ensure_lock", "lock_digest", "lock_text"]
