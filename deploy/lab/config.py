"""
Which lab: its folder, its bridge, its addresses, and every name that follows from them.  Nouns.

Whatever the lab puts into the kernel (links, nft tables, cgroups, units) carries the bridge's
name, so that two labs do not meet and `down` can tell its own from everything else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from deploy.errors import LabError

FIRST_ADDRESS = 11  # n1 is SUBNET.11
MAX_HOSTS = 32


class HostState(StrEnum):
    """
    What the kernel says of a host.
    """

    RUNNING = "running"
    FROZEN = "frozen"  # no process of it runs; its connections stay open and silent
    CUT = "cut"  # it runs; no frame reaches or leaves it
    STOPPED = "stopped"  # it has a disk and no process


@dataclass(frozen=True, slots=True)
class LabHost:
    """
    One host as `status` found it.

    Attributes:
        leader: Process id of the host's init on this machine; None when it is stopped.
        memory_mib: Working set: without the page cache that the kernel can take back.
        disk_mib: What the host has written over the shared base.
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
        directory: Holds disks, keys and logs; on a real filesystem, not on an overlay.
        bases: Holds the base trees that labs share.
        bridge: Name of the bridge; 2 to 6 letters and digits.
        prefix: First three numbers of the hosts' /24.
    """

    directory: Path
    bases: Path
    bridge: str = "slip0"
    prefix: str = "10.78.0"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{1,5}", self.bridge):
            raise LabError(
                f"the lab's bridge can't be called {self.bridge!r}",
                why="the links' names are made of it and may have 15 characters",
                fix="set SLIPWAY_LAB_BRIDGE to 2-6 lower-case letters and digits",
            )
        numbers = self.prefix.split(".")
        if len(numbers) != 3 or not all(n.isdigit() and int(n) < 256 for n in numbers):
            raise LabError(
                f"the lab's network can't be {self.prefix!r}",
                why="it should be the first three numbers of a /24, such as 10.78.0",
                fix="correct SLIPWAY_LAB_SUBNET",
            )
        if re.search(r"[:,\\\s]", str(self.directory)) or not self.directory.is_absolute():
            raise LabError(
                f"the lab's folder can't be {str(self.directory)!r}",
                why="mount(8) needs an absolute path without spaces, colons and commas",
                fix="set SLIPWAY_LAB_DIR to another folder",
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """
        Return the default lab, or the one that SLIPWAY_LAB_DIR, _BASES, _BRIDGE and _SUBNET name.
        """
        home = Path(env.get("HOME") or "/root")
        cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "slipway/lab"
        directory = Path(env.get("SLIPWAY_LAB_DIR") or cache)
        return cls(
            directory=directory,
            bases=Path(env.get("SLIPWAY_LAB_BASES") or directory),
            bridge=env.get("SLIPWAY_LAB_BRIDGE") or "slip0",
            prefix=env.get("SLIPWAY_LAB_SUBNET") or "10.78.0",
        )

    def as_env(self) -> dict[str, str]:
        """
        Return the variables from which `from_env` makes this very lab.
        """
        return {
            "SLIPWAY_LAB_DIR": str(self.directory),
            "SLIPWAY_LAB_BASES": str(self.bases),
            "SLIPWAY_LAB_BRIDGE": self.bridge,
            "SLIPWAY_LAB_SUBNET": self.prefix,
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

    def console(self, host: str) -> Path:
        return self.hosts / host / "console.log"

    # Names in the kernel

    @property
    def tag(self) -> str:
        """
        Name of the lab's nft tables and cgroup, and prefix of its mounts and units.
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
        Return nspawn's name of *host*; its link is called vb-MACHINE.
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
        Return n1 to n*count*.
        """
        if not 1 <= count <= MAX_HOSTS:
            raise LabError(
                f"a lab of {count} hosts",
                why=f"it can have 1 to {MAX_HOSTS}",
                fix="ask for a number of hosts in that range",
            )
        return tuple(f"n{i}" for i in range(1, count + 1))


def number(host: str) -> int:
    """
    Return 3 for n3.

    Raises:
        LabError: Lab hosts are not called so.
    """
    if match := re.fullmatch(r"n([1-9]\d?)", host):
        return int(match[1])
    raise LabError(
        f"{host!r} is no lab host",
        why="lab hosts are called n1, n2, n3, ...",
        fix="inv lab.status lists them",
    )
