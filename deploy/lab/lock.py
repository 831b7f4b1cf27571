"""
The lock of one lab: commands that change it run one at a time.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.lab import preflight
from deploy.lab.config import LabConfig


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
    config.directory.mkdir(parents=True, exist_ok=True)
    with config.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress(f"waiting for another lab command to end (process {lock.read().strip()})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
