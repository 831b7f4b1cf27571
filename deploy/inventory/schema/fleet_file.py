"""
The whole fleet file.  Pure.
"""

from typing import Self

from pydantic import Field, model_validator

from deploy.inventory.names import HostName, RowName, SecretName
from deploy.inventory.schema.gpu import DriverSection, GpuSection
from deploy.inventory.schema.hosts import HostEntry, HostGroup
from deploy.inventory.schema.mirrors import Mirrors
from deploy.inventory.schema.references import dangling_names, secret_references
from deploy.inventory.schema.release import ReleaseSection
from deploy.inventory.schema.secret import Secret
from deploy.inventory.schema.service import Service
from deploy.inventory.schema.signing import Signing
from deploy.inventory.schema.ssh import Ssh
from deploy.inventory.schema.state import StateSettings
from deploy.inventory.schema.storage import Storage
from deploy.inventory.schema.strict import Strict


class FleetFile(Strict):
    """
    Content of a fleet file.
    """

    row: RowName  # default row of the version matrix
    ssh: Ssh = Ssh()
    mirrors: Mirrors = Mirrors()
    secrets: dict[SecretName, Secret] = {}
    service: Service = Service()
    release: ReleaseSection = ReleaseSection()
    state: StateSettings = StateSettings()
    storage: Storage = Storage()
    driver: DriverSection = DriverSection()  # of every host whose row needs GPUs
    gpu: GpuSection = GpuSection()
    signing: Signing
    groups: dict[HostName, HostGroup] = {}
    hosts: dict[HostName, HostEntry] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        groups = {name: group.hosts for name, group in self.groups.items()}
        references = secret_references(self.model_dump(include={"service", "release", "state"}))
        for path, problem in dangling_names(groups, self.hosts, references, self.secrets):
            raise ValueError(f"{path}: {problem}")
        return self
