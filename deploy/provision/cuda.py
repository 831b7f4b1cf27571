"""
CUDA.  Nothing is installed here: the wheels of torch contain the CUDA runtime and need only the
driver.  A toolkit that the fleet file asks for is installed with the driver.
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
