"""
What the parent process hands to the worker, and what the worker answers: JSON both ways.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deploy.inventory.schema import Host, Ssh
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource


class Site(BaseModel):
    """
    One host as a list.

    Attributes:
        requirements: Must hold before the host is touched.
        placed: What is on its disk, in the order in which it comes there.
        running: What runs, from what is on the disk.
    """

    model_config = ConfigDict(frozen=True)

    requirements: tuple[AnyRequirement, ...]
    placed: tuple[AnyResource, ...]
    running: tuple[AnyResource, ...]


class HostJob(BaseModel):
    """
    One host: how to reach it, and all that it should have.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    address: str
    ssh: dict[str, Any]
    site: Site

    @classmethod
    def of(cls, host: Host, site: Site) -> "HostJob":
        ssh = host.ssh.model_dump(mode="json")
        return cls(name=host.name, address=host.address, ssh=ssh, site=site)

    @property
    def host(self) -> Host:
        """
        Return the host as the transport wants it.
        """
        # Validated where the fleet file was read; by now durations are plain seconds.
        ssh = Ssh.model_construct(**self.ssh | _paths(self.ssh))
        return Host.model_construct(
            name=self.name, address=self.address, groups=(), row="", ssh=ssh, vars={}
        )


class Job(BaseModel):
    """
    Attributes:
        check: Look only.
    """

    model_config = ConfigDict(frozen=True)

    check: bool
    hosts: tuple[HostJob, ...]


def _paths(ssh: Mapping[str, Any]) -> dict[str, Path | None]:
    return {key: Path(ssh[key]) if ssh[key] else None for key in ("key", "known_hosts")}
