"""
What the parent process sends to the worker, as JSON.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deploy.inventory.host_document import host_document, host_of
from deploy.inventory.schema import Host
from deploy.provision.resource_set import ResourceSet


class HostRequest(BaseModel):
    """
    One host to change.

    Attributes:
        fence: Number of the lease under which it is changed.
    """

    model_config = ConfigDict(frozen=True)

    document: dict[str, Any]  # of the host
    resources: ResourceSet
    fence: int

    @classmethod
    def of(cls, host: Host, resources: ResourceSet, fence: int) -> "HostRequest":
        return cls(document=host_document(host), resources=resources, fence=fence)

    @property
    def host(self) -> Host:
        """
        The host as the transport takes it.
        """
        return host_of(self.document)

    @property
    def name(self) -> str:
        return str(self.document["name"])

    @property
    def sudo(self) -> bool:
        """
        True if the SSH user is not root.
        """
        return self.host.ssh.user != "root"


class StopOrder(BaseModel):
    """
    A later line: change nothing more on one host, because its lease was lost.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    what: str
    why: str
    fix: str


class WorkerRequest(BaseModel):
    """
    Attributes:
        packed_program: The host program, see `probe.pack_program`.
        sudo_password: None: this process has asked for none.
        deep: As for `run.provision`.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    packed_program: bytes
    sudo_password: str | None = Field(default=None, repr=False)
    deep: bool = False
    hosts: tuple[HostRequest, ...]
