"""
Settings of one lab: its folder, bridge and addresses, and the names derived from them.

Everything that the lab creates in the kernel (links, nft tables, cgroups, units) has the bridge's
name in its own.  Two labs therefore never collide, and `down` removes only what belongs to its lab.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from deploy.errors import LabError
from deploy.lab.suites import DEFAULT_SUITE, SUITES

FIRST_ADDRESS = 11  # n1 is SUBNET.11
MAX_HOSTS = 32


class HostState(StrEnum):
    """
    State of a host, read from the kernel.
    """

    RUNNING = "running"
    FROZEN = "frozen"  # its processes are stopped; its connections stay open without an answer
    CUT = "cut"  # it runs; the bridge drops all frames to and from it
    STOPPED = "stopped"  # it has a disk and no process


@dataclass(frozen=True, slots=True)
class LabHost:
    """
    State of one host at the time of `status`.

    Attributes:
        leader: Process id of the host's init on this machine; None when it is stopped.
        memory_mib: Working set: memory without the page cache that the kernel can reclaim.
        disk_mib: Size of the files that the host has written on top of the shared base.
    """

    name: str
    address: str
    state: HostState
    leader: int | None
    memory_mib: int
    disk_mib: int


@dataclass(frozen=True, slots=True)
class LabStatus:
    directory: Path
    bridge: str
    subnet: str  # 10.78.0.0/24
    hosts: tuple[LabHost, ...]


@dataclass(frozen=True, slots=True)
class LabConfig:
    """
    Attributes:
        directory: Folder of disks, keys and logs.  Its filesystem must not be an overlay.
        bases: Folder of the base trees, which labs share.
        bridge: Name of the bridge: a lower-case letter, then 1 to 5 lower-case letters or digits.
        prefix: First three numbers of the hosts' /24 network, such as 10.78.0.
        suite: Release of the distribution that new disks have, such as bookworm; one of SUITES.
    """

    directory: Path
    bases: Path
    bridge: str = "slip0"
    prefix: str = "10.78.0"
    suite: str = DEFAULT_SUITE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{1,5}", self.bridge):
            raise LabError(
                f"SLIPWAY_LAB_BRIDGE: {self.bridge!r} is not a valid bridge name",
                why="link names contain it and may have at most 15 characters",
                fix="set SLIPWAY_LAB_BRIDGE to a letter and 1 to 5 letters or digits, lower case",
            )
        numbers = self.prefix.split(".")
        if len(numbers) != 3 or not all(
            re.fullmatch("[0-9]{1,3}", n) and int(n) < 256 for n in numbers
        ):
            raise LabError(
                f"SLIPWAY_LAB_SUBNET: {self.prefix!r} is not a valid network",
                why="it is not three numbers from 0 to 255 with dots between them",
                fix="set SLIPWAY_LAB_SUBNET to the start of a /24 network, such as 10.78.0",
            )
        if self.suite not in SUITES:
            raise LabError(
                f"SLIPWAY_LAB_SUITE: {self.suite!r} is not a release that lab hosts can run",
                why=f"the releases are {', '.join(SUITES)}",
                fix="set SLIPWAY_LAB_SUITE to one of them",
            )
        if re.search(r"[:,\\\s]", str(self.directory)) or not self.directory.is_absolute():
            raise LabError(
                f"SLIPWAY_LAB_DIR: {str(self.directory)!r} is not usable as the lab's folder",
                why="overlay mounts need an absolute path without spaces, colons, commas and"
                " backslashes",
                fix="set SLIPWAY_LAB_DIR to such a path",
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """
        Return the lab of SLIPWAY_LAB_DIR, _BASES, _BRIDGE, _SUBNET and _SUITE.

        A variable that is not set has its default.
        """
        home = Path(env.get("HOME") or "/root")
        cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "slipway/lab"
        directory = Path(env.get("SLIPWAY_LAB_DIR") or cache)
        return cls(
            directory=directory,
            bases=Path(env.get("SLIPWAY_LAB_BASES") or directory),
            bridge=env.get("SLIPWAY_LAB_BRIDGE") or "slip0",
            prefix=env.get("SLIPWAY_LAB_SUBNET") or "10.78.0",
            suite=env.get("SLIPWAY_LAB_SUITE") or DEFAULT_SUITE,
        )

    def as_env(self) -> dict[str, str]:
        """
        Return the variables from which `from_env` builds an equal config.
        """
        return {
            "SLIPWAY_LAB_DIR": str(self.directory),
            "SLIPWAY_LAB_BASES": str(self.bases),
            "SLIPWAY_LAB_BRIDGE": self.bridge,
            "SLIPWAY_LAB_SUBNET": self.prefix,
            "SLIPWAY_LAB_SUITE": self.suite,
        }

    # Files

    @property
    def hosts(self) -> Path:
        return self.directory / "hosts"

    @property
    def common(self) -> Path:
        return self.directory / "common"

    @property
    def keys(self) -> Path:
        return self.directory / "keys"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    def host_dir(self, host: str) -> Path:
        return self.hosts / host

    def root(self, host: str) -> Path:
        return self.hosts / host / "root"

    def disk_image(self, host: str) -> Path:
        """
        Return the image of a file system for *host*'s disk; without one its size has no limit.
        """
        return self.directory / "disks" / f"{host}.img"

    def console(self, host: str) -> Path:
        return self.hosts / host / "console.log"

    # Names in the kernel

    @property
    def tag(self) -> str:
        """
        Name of the lab's cgroup and nft rules, and prefix of its mounts and units.
        """
        return f"slipway-lab-{self.bridge}"

    @property
    def table(self) -> str:
        return self.tag.replace("-", "_")

    @property
    def link_prefix(self) -> str:
        return f"vb-{self.bridge}-"

    def machine(self, host: str) -> str:
        """
        Return the machine name that nspawn gets for *host*; nspawn calls its link vb-MACHINE.
        """
        return f"{self.bridge}-{host}"

    def link(self, host: str) -> str:
        return f"vb-{self.machine(host)}"

    def unit(self, host: str) -> str:
        return f"{self.tag}-{host}.service"

    # Addresses

    @property
    def subnet(self) -> str:
        return f"{self.prefix}.0/24"

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.1"

    def address(self, host: str) -> str:
        return f"{self.prefix}.{FIRST_ADDRESS - 1 + number(host)}"

    def names(self, count: int) -> tuple[str, ...]:
        """
        Return the host names n1 to n*count*.

        Raises:
            LabError: *count* is not from 1 to MAX_HOSTS.
        """
        if not 1 <= count <= MAX_HOSTS:
            raise LabError(
                f"a lab cannot have {count} hosts",
                why=f"a lab has 1 to {MAX_HOSTS} hosts",
                fix=f"inv lab.up --hosts N with a number from 1 to {MAX_HOSTS}",
            )
        return tuple(f"n{i}" for i in range(1, count + 1))


def number(host: str) -> int:
    """
    Return the number in a host name: 3 for n3.

    Raises:
        LabError: *host* is not a name of a lab host.
    """
    if match := re.fullmatch(r"n([1-9][0-9]?)", host):
        return int(match[1])
    raise LabError(
        f"{host!r} is not the name of a lab host",
        why="lab hosts are named n1, n2, n3, ...",
        fix="inv lab.status: it lists the lab's hosts",
    )
