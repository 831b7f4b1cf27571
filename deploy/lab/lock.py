"""
The lock of one lab: commands that change it run one at a time.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.lab import preflight
from deploy.lab.config import LabConfig
from deploy.private_files import open_private


@contextmanager
def exclusive(config: LabConfig, progress: Callable[[str], None]) -> Iterator[None]:
    """
    Hold the lab's lock; wait for it while another command holds it.

    The kernel releases the lock when its process dies.

    Raises:
        LabError: This process does not run as root.
    """
    if os.geteuid() != 0:
        raise preflight.root_required()
    config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_private(config.lock) as lock, _umask_of_hosts():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress(f"waiting for another lab command to end (process {lock.read().strip()})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def _umask_of_hosts() -> Iterator[None]:
    """
    Create files as hosts have them: their own users must be able to read /etc and /usr.
    """
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
