"""
The NVIDIA driver.  Checked, not installed: a host whose driver the row does not allow is refused
before it is changed.
"""

from deploy.provision.requirements import AnyRequirement, Driver
from deploy.provision.resources import AnyResource
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    if spec.row.driver_min is None:
        return []
    return [Driver(row=spec.row.name, minimum=spec.row.driver_min)]


def install(spec: HostSpec) -> list[AnyResource]:
    return []


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
