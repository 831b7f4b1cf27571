"""
The wheels of a row, downloaded once to this machine and verified by hash: hosts need no index.
"""

from deploy.wheelhouse.fetch import ensure_lock, lock_digest
from deploy.wheelhouse.lock import Lock, Wheel, lock_text

__all__ = ["Lock", "Wheel", "ensure_lock", "lock_digest", "lock_text"]
