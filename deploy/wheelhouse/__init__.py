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
from deploy.wheelhouse.interpreter import InterpreterPin, ensure_archive, interpreter_of
from deploy.wheelhouse.lock import CachedWheel, Lock, lock_text
from deploy.wheelhouse.uv_wheel import UvProgram, ensure_uv, uv_program

__all__ = [
    "DEFAULT_CACHE",
    "CachedWheel",
    "InterpreterPin",
    "Lock",
    "UvProgram",
    "cached_lock",
    "ensure_archive",
    "ensure_lock",
    "ensure_uv",
    "interpreter_of",
    "local_path",
    "lock_digest",
    "lock_text",
    "unfetched_lock",
    "uv_program",
]
