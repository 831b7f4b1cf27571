"""
The faults of lab hosts, by the names of their tasks.
"""

from collections.abc import Callable

from deploy.lab import lab


def inject_fault(name: str, host: str, progress: Callable[[str], None]) -> None:
    """
    Do what the task `lab.NAME` says to *host*.

    Raises:
        LabError: There is no such host, or it is down.
        KeyError: No fault has this name.
    """
    faults: dict[str, Callable[[], None]] = {
        "cut": lambda: lab.cut(host),
        "heal": lambda: lab.heal(host),
        "freeze": lambda: lab.freeze(host),
        "thaw": lambda: lab.thaw(host),
        "crash": lambda: lab.crash(host, progress=progress),
        "start": lambda: lab.start(host, progress=progress),
    }
    faults[name]()
