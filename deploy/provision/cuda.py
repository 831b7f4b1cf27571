"""
CUDA.  Nothing is installed: torch's wheels carry their own CUDA runtime and need only the driver.
A toolkit on the host, for those who compile there, is not there yet.
"""

from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    return []


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
