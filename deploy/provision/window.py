"""
The hours in which hosts may be rebooted.  Pure.
"""

import re
from dataclasses import dataclass
from datetime import datetime, time
from zoneinfo import ZoneInfo

from deploy.errors import UsageError
from deploy.foreign_text import visible

_FORM = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)(?: +(\S+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Window:
    """
    Attributes:
        end: Its first minute no longer belongs to it; before `begin`: on the next day.
        zone: None: the local time of this machine.
    """

    begin: time
    end: time
    zone: ZoneInfo | None

    def is_open(self, now: datetime) -> bool:
        """
        Return whether *now*, which has a time zone, lies in it.
        """
        clock = now.astimezone(self.zone).time()
        if self.begin < self.end:
            return self.begin <= clock < self.end
        return clock >= self.begin or clock < self.end

    def __str__(self) -> str:
        zone = self.zone.key if self.zone else "local time of this machine"
        return f"{self.begin:%H:%M}-{self.end:%H:%M} {zone}"


def parse_window(text: str) -> Window:
    """
    Return the window in *text*, such as "02:00-05:00" or "22:00-04:00 Europe/Berlin".

    Raises:
        UsageError: It is none, or this machine does not know the time zone.
    """
    match = _FORM.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError("two times of the day with a hyphen, then a time zone if any")
        begin, end = (time.fromisoformat(match[number]) for number in (1, 2))
        if begin == end:
            raise ValueError("it begins when it ends")
        zone = ZoneInfo(match[3]) if match[3] else None
    except (ValueError, KeyError, OSError) as error:  # KeyError: an unknown zone
        raise UsageError(
            f"--window: {visible(text, limit=64)!r} is no window",
            why=visible(str(error).strip("'\"")),
            fix='inv provision --waves 1 --window "02:00-05:00 Europe/Berlin"; without a zone it '
            "is the local time of this machine",
        ) from None
    return Window(begin, end, zone)
