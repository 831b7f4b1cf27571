"""
How many hosts are rebooted at once, and which are next.  Pure.
"""

import re
from collections.abc import Collection, Sequence

from deploy.errors import UsageError
from deploy.foreign_text import visible

_SIZE = re.compile(r"[1-9][0-9]{0,4}|(?:[1-9][0-9]?|100)%", re.ASCII)


def parse_waves(text: str) -> tuple[str, ...]:
    """
    Return the sizes of waves in *text*, such as "1,25%"; the last one holds for all later waves.

    Raises:
        UsageError: One is neither a number of hosts nor a percentage of the fleet.
    """
    sizes = tuple(part.strip() for part in text.split(","))
    for size in sizes:
        if not _SIZE.fullmatch(size):
            raise UsageError(
                f"--waves: {visible(size, limit=64)!r} is no size of a wave",
                why="each is a number of hosts, or a percentage of the fleet up to 100%",
                fix="inv provision --waves 1,25%",
            )
    return sizes


def size_of(sizes: Sequence[str], number: int, hosts: int) -> int:
    """
    Return how many hosts of a fleet of *hosts* may be away in wave *number*, from 0; at least 1.
    """
    size = sizes[min(number, len(sizes) - 1)]
    wanted = hosts * int(size[:-1]) // 100 if size.endswith("%") else int(size)
    return max(1, min(wanted, hosts))


def next_wave(
    size: int, needing: Sequence[str], closed: Sequence[str], away: Collection[str]
) -> tuple[str, ...]:
    """
    Return the hosts of the next wave: those that an earlier run left closed, then others.

    Args:
        needing: Hosts that need a reboot.
        closed: Hosts that take no requests now and are to be brought back.
        away: Other hosts of the fleet that cannot serve; they count as part of the wave.
    """
    room = max(0, size - len(closed) - len(away))
    others = [host for host in needing if host not in closed]
    return (*closed, *others[:room])
