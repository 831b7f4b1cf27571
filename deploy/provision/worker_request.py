"""
What the parent process sends to the worker, as JSON.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deploy.inventory.names import parse_jump
from deploy.inventory.schema import Host, Ssh
from deploy.provision.resource_set import ResourceSet


class HostRequest(BaseModel):
    """
    One host to change.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    address: str
    ssh: dict[str, Any]
    resources: ResourceSet

    @classmethod
    def of(cls, host: Host, resources: ResourceSet) -> "HostRequest":
        return cls(
            name=host.name,
            address=host.address,
            ssh=host.ssh.model_dump(mode="json"),
            resources=resources,
        )

    @property
    def host(self) -> Host:
        """
        The host as the transport takes it.
        """
        # Validated when the fleet file was read; by now durations are plain seconds.
        jump = None if self.ssh["jump"] is None else parse_jump(self.ssh["jump"])
        ssh = Ssh.model_construct(**self.ssh | _paths(self.ssh) | {"jump": jump})
        return Host.model_construct(
            name=self.name, address=self.address, groups=(), row="", ssh=ssh, vars={}
        )

    @property
    def sudo(self) -> bool:
        """
        True if the SSH user is not root.
        """
        return self.host.ssh.user != "root"


class WorkerRequest(BaseModel):
    """
    Attributes:
        packed_program: The host program, see `probe.pack_program`.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    packed_program: bytes
    hosts: tuple[HostRequest, ...]


def _paths(ssh: Mapping[str, Any]) -> dict[str, Path | None]:
    return {key: Path(ssh[key]) if ssh[key] else None for key in ("key", "known_hosts")}
