"""
What must be true of a host before anything on it is changed.  Pure.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from deploy.host.protocol import FactQuery, Facts
from deploy.units import format_size

# Python that Debian's package python3 brings along.
_DEBIANS = {"bookworm": "3.11"}

# Newest branch of the NVIDIA driver that Debian itself has, non-free and backports included.
# Source: apt-cache on Debian 12, read 2026-11-22.
_DEBIAN_DRIVERS = {"bookworm": "535"}


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    def query(self) -> FactQuery:
        return FactQuery()

    def refusal(self, facts: Facts) -> Refusal | None:
        """
        Return why a host that looks like *facts* is not touched; None: it may be.
        """
        raise NotImplementedError


class Platform(Requirement):
    """
    A Debian of today on x86_64.
    """

    kind: Literal["platform"] = "platform"

    def refusal(self, facts: Facts) -> Refusal | None:
        if facts.has_apt and facts.machine == "x86_64":
            return None
        lacks = "no apt-get" if not facts.has_apt else f"processor {facts.machine}"
        return Refusal(
            error="PreconditionError",
            why=f"{facts.os_id or 'unknown system'}: {lacks}",
            fix="use a host with Debian 12 on x86_64",
        )


class PythonAvailable(Requirement):
    """
    The interpreter that the row's wheels are for.  Debian's own comes with the packages.
    """

    kind: Literal["python"] = "python"
    version: str

    def refusal(self, facts: Facts) -> Refusal | None:
        if self.version in facts.pythons or _DEBIANS.get(facts.codename) == self.version:
            return None
        return Refusal(
            error="PreconditionError",
            why=f"the row needs Python {self.version}; /usr/bin has {', '.join(facts.pythons)}",
            fix=f"install python{self.version} on the host, or choose a row with another Python",
        )


class PortFree(Requirement):
    """
    Nobody but HAProxy listens on the public port.
    """

    kind: Literal["port"] = "port"
    port: int

    @property
    def query(self) -> FactQuery:
        return FactQuery(port=self.port)

    def refusal(self, facts: Facts) -> Refusal | None:
        for listener in facts.listeners:
            if listener.program != "haproxy":
                return Refusal(
                    error="PortInUse",
                    why=f"{listener.program} (pid {listener.pid}) listens on port {self.port}",
                    fix=f"stop {listener.program} on the host, or set service.port to another",
                )
        return None


class DiskSpace(Requirement):
    """
    Free space that is asked for whatever else is sent.
    """

    kind: Literal["room"] = "room"
    path: str
    floor_bytes: int

    @property
    def query(self) -> FactQuery:
        return FactQuery(room=(self.path,))

    def refusal(self, facts: Facts) -> Refusal | None:
        free = facts.room[self.path]
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

    def refusal(self, facts: Facts) -> Refusal | None:
        if facts.driver is None:
            return Refusal(
                error="PreconditionError",
                why=f"no NVIDIA driver is loaded; row {self.row} needs {self.minimum} or later",
                fix=f"install the driver{self._source(facts)} and reboot, then provision again",
            )
        if _numbers(facts.driver) < _numbers(self.minimum):
            return Refusal(
                error="PreconditionError",
                why=f"NVIDIA driver {facts.driver}; row {self.row} needs {self.minimum} or later",
                fix=f"update the driver{self._source(facts)} and reboot, "
                "or choose a row that allows it: inv matrix",
            )
        return None

    def _source(self, facts: Facts) -> str:
        """
        Return where the driver comes from, if not from the host's own distribution.
        """
        own = _DEBIAN_DRIVERS.get(facts.codename)
        if own is None or _numbers(own) >= _numbers(self.minimum)[:1]:
            return ""
        return (
            f" from NVIDIA's own repository, for Debian {facts.codename} ends at {own} "
            "(docs/reference/provision.md),"
        )


class NoReleaseRunning(Requirement):
    """
    No release holds the host's lease: HAProxy is never reloaded under one.
    """

    kind: Literal["lease"] = "lease"

    def refusal(self, facts: Facts) -> Refusal | None:
        if facts.lease is None:
            return None
        held = facts.lease
        return Refusal(
            error="LeaseHeld",
            why=f"{held.owner} is releasing {held.release or 'something'} here; "
            f"their lease has {held.left_s:.0f} s left",
            fix="wait for the release to end: inv status",
        )


AnyRequirement = Annotated[
    Platform | PythonAvailable | PortFree | DiskSpace | Driver | NoReleaseRunning,
    Field(discriminator="kind"),
]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
