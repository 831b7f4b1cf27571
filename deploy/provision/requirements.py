"""
What must be true of a host before anything on it is changed.  Pure.
"""

from typing import Annotated, Literal

from pydantic import Field

from deploy.provision.seen import Frozen, Question, Seen
from deploy.units import format_size

# Python that Debian's package python3 brings along.
_DEBIANS = {"bookworm": "3.11"}

# Newest branch of the NVIDIA driver that Debian itself has, non-free and backports included.
# Source: apt-cache on Debian 12, read 2026-11-22.
_DEBIAN_DRIVERS = {"bookworm": "535"}


class Refusal(Frozen):
    """
    Attributes:
        error: Class of `deploy.errors` that says what kind of failure it is.
    """

    error: str
    why: str
    fix: str


class Requirement(Frozen):
    @property
    def question(self) -> Question:
        return Question()

    def refusal(self, seen: Seen) -> Refusal | None:
        """
        Return why a host that looks like *seen* is not touched; None: it may be.
        """
        raise NotImplementedError


class Platform(Requirement):
    """
    A Debian of today on x86_64.
    """

    kind: Literal["platform"] = "platform"

    def refusal(self, seen: Seen) -> Refusal | None:
        if seen.has_apt and seen.machine == "x86_64":
            return None
        lacks = "no apt-get" if not seen.has_apt else f"processor {seen.machine}"
        return Refusal(
            error="PreconditionError",
            why=f"{seen.os_id or 'unknown system'}: {lacks}",
            fix="use a host with Debian 12 on x86_64",
        )


class PythonThere(Requirement):
    """
    The interpreter that the row's wheels are for.  Debian's own comes with the packages.
    """

    kind: Literal["python"] = "python"
    version: str

    def refusal(self, seen: Seen) -> Refusal | None:
        if self.version in seen.pythons or _DEBIANS.get(seen.codename) == self.version:
            return None
        return Refusal(
            error="PreconditionError",
            why=f"the row needs Python {self.version}; /usr/bin has {', '.join(seen.pythons)}",
            fix=f"install python{self.version} on the host, or choose a row with another Python",
        )


class PortFree(Requirement):
    """
    Nobody but HAProxy listens on the public port.
    """

    kind: Literal["port"] = "port"
    port: int

    @property
    def question(self) -> Question:
        return Question(port=self.port)

    def refusal(self, seen: Seen) -> Refusal | None:
        for listener in seen.listeners:
            if listener.program != "haproxy":
                return Refusal(
                    error="PortInUse",
                    why=f"{listener.program} (pid {listener.pid}) listens on port {self.port}",
                    fix=f"stop {listener.program} on the host, or set service.port to another",
                )
        return None


class Room(Requirement):
    """
    Free space that is asked for whatever else is sent.
    """

    kind: Literal["room"] = "room"
    path: str
    floor_bytes: int

    @property
    def question(self) -> Question:
        return Question(room=(self.path,))

    def refusal(self, seen: Seen) -> Refusal | None:
        free = seen.room[self.path]
        if free >= self.floor_bytes:
            return None
        return Refusal(
            error="DiskTooSmall",
            why=f"{self.path} has {format_size(free)} free, "
            f"{format_size(self.floor_bytes)} are needed",
            fix=f"make room on the file system of {self.path}",
        )


class Driver(Requirement):
    """
    The loaded NVIDIA driver, where the row needs one.
    """

    kind: Literal["driver"] = "driver"
    row: str
    minimum: str

    def refusal(self, seen: Seen) -> Refusal | None:
        if seen.driver is None:
            return Refusal(
                error="PreconditionError",
                why=f"no NVIDIA driver is loaded; row {self.row} needs {self.minimum} or later",
                fix=f"install the driver{self._source(seen)} and reboot, then provision again",
            )
        if _numbers(seen.driver) < _numbers(self.minimum):
            return Refusal(
                error="PreconditionError",
                why=f"NVIDIA driver {seen.driver}; row {self.row} needs {self.minimum} or later",
                fix=f"update the driver{self._source(seen)} and reboot, "
                "or choose a row that allows it: inv matrix",
            )
        return None

    def _source(self, seen: Seen) -> str:
        """
        Return where the driver comes from, if not from the host's own distribution.
        """
        own = _DEBIAN_DRIVERS.get(seen.codename)
        if own is None or _numbers(own) >= _numbers(self.minimum)[:1]:
            return ""
        return (
            f" from NVIDIA's own repository, for Debian {seen.codename} ends at {own} "
            "(docs/reference/provision.md),"
        )


class NobodyReleases(Requirement):
    """
    No release holds the host's lease: HAProxy is never reloaded under one.
    """

    kind: Literal["lease"] = "lease"
    path: str

    @property
    def question(self) -> Question:
        return Question(lease=self.path)

    def refusal(self, seen: Seen) -> Refusal | None:
        if seen.lease is None:
            return None
        held = seen.lease
        return Refusal(
            error="LeaseHeld",
            why=f"{held.owner} is releasing {held.release or 'something'} here; "
            f"their lease has {held.left_s:.0f} s left",
            fix="wait for the release to end: inv status",
        )


AnyRequirement = Annotated[
    Platform | PythonThere | PortFree | Room | Driver | NobodyReleases,
    Field(discriminator="kind"),
]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
