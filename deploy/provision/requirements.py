"""
Requirements that a host must meet before it is changed.  Pure.
"""

import hashlib
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from deploy.foreign_text import visible
from deploy.host import layout
from deploy.host.deadman.pending import STUCK_S
from deploy.host.facts import TEXT_MAX_BYTES
from deploy.host.protocol import FactQuery, Facts
from deploy.provision.row_fit import distribution_of, row_conflict
from deploy.units import format_size
from deploy.versions.catalog import load_catalog

# Newest branch of the NVIDIA driver in Debian, non-free and backports included.
# Source: apt-cache on Debian 12, read 2026-11-22.
_DEBIAN_DRIVERS = {"bookworm": "535"}


# What the lease of a run leaves on a host without data; the mount takes it along.
_OF_LEASE = {
    path.rpartition("/")[2]
    for path in (layout.LOCK, layout.LEASE, f"{layout.LEASE}.new", layout.JOURNAL)
} | {".spare-lease.json"}

# A parameter of the kernel's command line; net.ipv6.conf.*.disable_ipv6 does not prevent a bind.
_IPV6_DISABLED = "/sys/module/ipv6/parameters/disable"


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostRefusal(Frozen):
    """
    Attributes:
        error: Name of the class of `deploy.errors`.
    """

    error: str
    why: str
    fix: str


class Requirement(Frozen):
    """
    Attributes:
        is_for_changes: It matters only where something is about to be changed.
    """

    is_for_changes: ClassVar[bool] = False

    @property
    def query(self) -> FactQuery:
        return FactQuery()

    def refusal(self, facts: Facts) -> HostRefusal | None:
        """
        Return why a host with *facts* must not be changed; None if it may be.
        """
        raise NotImplementedError


class Platform(Requirement):
    """
    A distribution of the version matrix on x86_64.
    """

    kind: Literal["platform"] = "platform"

    def refusal(self, facts: Facts) -> HostRefusal | None:
        catalog = load_catalog()
        if facts.machine != "x86_64":
            lacks = f"processor {visible(facts.machine)}"
        elif not facts.has_apt:
            lacks = "no apt-get"
        elif distribution_of(catalog, facts) is None:
            lacks = f"release {visible(facts.codename or 'without a codename')}"
        else:
            return None
        titles = ", ".join(row.title for row in catalog.distributions)
        return HostRefusal(
            error="PreconditionError",
            why=f"{visible(facts.os_id or 'unknown system')}: {lacks}",
            fix=f"use a host with {titles}, on x86_64",
        )


class PythonAvailable(Requirement):
    """
    The Python version of the row's wheels.  That of the distribution is installed with the
    packages.

    Attributes:
        rows: Rows with the same torch and their Pythons, which have locks.
        is_sent: The fleet sends an interpreter of its own.
    """

    kind: Literal["python"] = "python"
    version: str
    rows: dict[str, str]
    is_sent: bool = False

    def refusal(self, facts: Facts) -> HostRefusal | None:
        system = distribution_of(load_catalog(), facts)
        own = {*facts.pythons, *([system.python] if system else [])}
        if self.is_sent or self.version in own:
            return None
        fitting = [name for name, python in self.rows.items() if python in own]
        other = f"row: {fitting[0]}" if fitting else "a row whose Python it has"
        has = ", ".join(visible(python) for python in sorted(own)) or "none"
        return HostRefusal(
            error="PreconditionError",
            why=f"the row needs Python {self.version}; the host has {has}",
            fix=f"use {other} (inv matrix), or have the fleet send an interpreter: mirrors.python "
            "(docs/reference/provision.md)",
        )


class RowFits(Requirement):
    """
    The version matrix allows the row on the host: its GPUs, its driver and its distribution.

    Attributes:
        row: Name in the fleet file.
        torch: Minor, such as "2.13".
        cuda: CUDA minor, or "cpu".
        driver: The version that this run installs; None: the loaded one stays.
    """

    kind: Literal["row"] = "row"
    row: str
    torch: str
    cuda: str
    python: str
    driver: str | None = None

    def refusal(self, facts: Facts) -> HostRefusal | None:
        why = row_conflict(
            facts, torch=self.torch, cuda=self.cuda, python=self.python, driver=self.driver
        )
        if why is None:
            return None
        return HostRefusal(
            error="PreconditionError",
            why=f"row {self.row} does not fit: {why.conflicts}",
            fix=f"{why.nearest}; all rows: inv matrix",
        )


# The way to the host: sshd, or systemd where it listens for it.
_NOT_TO_STOP = ("sshd", "dropbear", "systemd")


class PortFree(Requirement):
    """
    No program but HAProxy listens on the public port.
    """

    kind: Literal["port"] = "port"
    port: int

    @property
    def query(self) -> FactQuery:
        return FactQuery(port=self.port)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        for listener in facts.listeners:
            if listener.program != "haproxy":
                stop = f"stop {listener.program} on the host, or "
                if listener.program in _NOT_TO_STOP:
                    stop = ""
                return HostRefusal(
                    error="PortInUse",
                    why=f"{listener.program} (pid {listener.pid}) listens on port {self.port}",
                    fix=f"{stop}set service.port to another",
                )
        return None


class DiskSpace(Requirement):
    """
    Free space, beside that for the files that are sent.
    """

    is_for_changes: ClassVar[bool] = True
    kind: Literal["room"] = "room"
    path: str
    floor_bytes: int

    @property
    def query(self) -> FactQuery:
        return FactQuery(room=(self.path,))

    def refusal(self, facts: Facts) -> HostRefusal | None:
        free = facts.room[self.path]
        if free >= self.floor_bytes:
            return None
        return HostRefusal(
            error="DiskTooSmall",
            why=f"{self.path} has {format_size(free)} free, "
            f"{format_size(self.floor_bytes)} are needed",
            fix=f"free space on the file system of {self.path}",
        )


class Driver(Requirement):
    """
    The minimum version of the loaded NVIDIA driver.
    """

    kind: Literal["driver"] = "driver"
    row: str
    minimum: str

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if facts.driver is None:
            return HostRefusal(
                error="PreconditionError",
                why=f"no NVIDIA driver is loaded; row {self.row} needs {self.minimum} or later",
                fix=f"install the driver{self._source(facts)} and reboot, then provision again",
            )
        if _numbers(facts.driver) < _numbers(self.minimum):
            return HostRefusal(
                error="PreconditionError",
                why=f"NVIDIA driver {facts.driver}; row {self.row} needs {self.minimum} or later",
                fix=f"update the driver{self._source(facts)} and reboot, "
                "or choose a row that allows it: inv matrix",
            )
        return None

    def _source(self, facts: Facts) -> str:
        """
        Return the source of the driver, where the distribution of the host has none new enough.
        """
        own = _DEBIAN_DRIVERS.get(facts.codename)
        if own is None or _numbers(own) >= _numbers(self.minimum)[:1]:
            return ""
        return (
            f" from NVIDIA's repository (Debian {facts.codename} ends at {own}; "
            "docs/reference/provision.md)"
        )


class PinnedDriver(Frozen):
    """
    The driver of the fleet file, which provisioning installs and loads.

    Attributes:
        modules: auto: of the flavour that the plan chooses.
    """

    version: str
    modules: Literal["auto", "open", "proprietary"] = "auto"

    def is_loaded(self, facts: Facts) -> bool:
        return facts.driver == self.version and self.modules in ("auto", facts.gpu_modules)


def has_final_driver(driver: PinnedDriver | None, facts: Facts) -> bool:
    """
    Return whether neither this run nor the next boot changes the loaded driver, which may be what
    shows fewer GPUs than there are.

    Args:
        driver: None: the fleet file pins none.
    """
    is_waiting = any(reason.cause == "driver" for reason in facts.reboot_reasons)
    return not is_waiting and (driver is None or driver.is_loaded(facts))


class GpusPresent(Requirement):
    """
    As many GPUs as a slot uses; a driver that is not loaded yet has none to count.
    """

    kind: Literal["gpus"] = "gpus"
    count: int
    driver: PinnedDriver | None = None

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if facts.driver is None or not has_final_driver(self.driver, facts):
            return None
        if facts.gpu_count >= self.count:
            return None
        return HostRefusal(
            error="PreconditionError",
            why=f"GPUs of the loaded NVIDIA driver: {facts.gpu_count}; service.gpus is "
            f"{self.count}",
            fix="where one is missing, nvidia-smi and dmesg on the host; else set service.gpus to "
            "what every host has",
        )


class NoReleaseRunning(Requirement):
    """
    Nobody else works on the host: HAProxy is not reloaded during a release, a second provisioning
    waits for the first, and a lease would keep a host from going back by itself.  One that cannot
    finish that is provisioned: what is missing there may be what keeps it.
    """

    is_for_changes: ClassVar[bool] = True
    kind: Literal["lease"] = "lease"

    def refusal(self, facts: Facts) -> HostRefusal | None:
        lease, pending = facts.lease, facts.pending
        if lease is not None:
            return HostRefusal(
                error="LeaseHeld",
                why=f"{visible(lease.owner)} holds the lease of the host for "
                f"{visible(lease.release or 'a release')}; it expires in {lease.left_s:.0f} s "
                "unless it is renewed",
                fix="wait until that ends: inv status",
            )
        if pending is not None and not pending.is_stuck:
            return HostRefusal(
                error="PreconditionError",
                why=f"release {visible(pending.release)} is not confirmed on the host: it is going "
                f"back to {pending.from_slot or 'no slot'} by itself",
                fix="wait until it has gone back (inv status), then: inv provision; where it is "
                f"not back after {STUCK_S:.0f} s, it is provisioned all the same",
            )
        return None


class NotForeign(Requirement):
    """
    A configuration file that slipway replaces is its own, or as its package installed it.

    Attributes:
        header: Words in the first line of each version of it that slipway wrote.
    """

    kind: Literal["not_foreign"] = "not_foreign"
    path: str
    header: str

    @property
    def query(self) -> FactQuery:
        # The resource of the file asks for its hash, and so for its text where that differs.
        return FactQuery(paths={self.path: ""}, conffiles=(self.path,))

    def refusal(self, facts: Facts) -> HostRefusal | None:
        found = facts.paths[self.path]
        text = (found.text if found else None) or ""
        is_known = (
            found is None
            or (not text.strip() and found.size <= TEXT_MAX_BYTES)  # as it should be, or empty
            or self.header in text.partition("\n")[0]
            or self.path in facts.untouched
        )
        if is_known:
            return None
        return HostRefusal(
            error="PreconditionError",
            why=f"{self.path} is another program's or was written by hand, and provisioning would "
            "replace it",
            fix=f"if nothing else needs it, on the host: mv {self.path} {self.path}.before-slipway",
        )


class Ipv6(Requirement):
    """
    The kernel has IPv6, on which the public port listens too.
    """

    kind: Literal["ipv6"] = "ipv6"

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={_IPV6_DISABLED: hashlib.sha256(b"0\n").hexdigest()})

    def refusal(self, facts: Facts) -> HostRefusal | None:
        found = facts.paths[_IPV6_DISABLED]
        if found is None or found.text != "1\n":
            return None
        return HostRefusal(
            error="PreconditionError",
            why="the public port listens on IPv6 too, and the kernel has it switched off "
            "(ipv6.disable=1)",
            fix="set service.ipv6: false, or remove ipv6.disable=1 from the kernel's command line",
        )


class DataInPlace(Requirement):
    """
    No data of *where* would be hidden by the mount, and it is not bound from elsewhere.

    Attributes:
        what: The directory that it is bound to.
    """

    kind: Literal["data_in_place"] = "data_in_place"
    where: str
    unit: str
    unit_file: str
    what: str

    @property
    def query(self) -> FactQuery:
        paths = {self.unit_file: "", self.what: ""}
        return FactQuery(units=(self.unit,), listings=(self.where,), paths=paths)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if facts.units[self.unit].active != "active":
            if self._has_data(facts):
                return self._hidden()
            return self._disk_is_away() if self._lacks_disk(facts) else None
        found = facts.paths[self.unit_file]
        if found is None:
            return self._refused(f"{self.where} is a mount already, and not one of slipway's")
        if found.text is None or self._binds(found.text):
            return None
        return self._refused(f"{self.where} is bound to another directory than {self.what}")

    def _has_data(self, facts: Facts) -> bool:
        own = _OF_LEASE if self.where == layout.STATE else set()
        return bool(facts.listings[self.where].keys() - own)

    def _lacks_disk(self, facts: Facts) -> bool:
        """
        Return whether *what* is gone, which was made before the unit was placed.
        """
        unit = facts.paths[self.unit_file]
        is_own = unit is not None and (unit.text is None or self._binds(unit.text))
        return is_own and facts.paths[self.what] is None

    def _binds(self, unit: str) -> bool:
        return f"What={self.what}" in unit.splitlines()

    def _disk_is_away(self) -> HostRefusal:
        return HostRefusal(
            error="PreconditionError",
            why=f"{self.where} was bound to {self.what}, which is not there: its disk is not "
            "mounted, and what is placed now would lie on the disk of the system",
            fix=f"mount the data disk first (findmnt, /etc/fstab), then {self.what} is there again",
        )

    def _hidden(self) -> HostRefusal:
        return self._refused(
            f"{self.where} has files already, which a mount from {self.what} would hide"
        )

    def _refused(self, why: str) -> HostRefusal:
        return HostRefusal(
            error="PreconditionError",
            why=why,
            fix="move the data as docs/reference/provision.md has it (A larger disk), or set "
            "storage.root to where it is",
        )


AnyRequirement = Annotated[
    Platform
    | PythonAvailable
    | RowFits
    | PortFree
    | DiskSpace
    | Driver
    | GpusPresent
    | NoReleaseRunning
    | NotForeign
    | Ipv6
    | DataInPlace,
    Field(discriminator="kind"),
]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
