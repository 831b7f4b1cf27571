"""
CUDA.  Nothing is installed: torch's wheels carry their own CUDA runtime and need only the driver.
A toolkit on the host, for those who compile there, is not there yet.
"""

from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource
from deploy.provision.spec import Goal


def requirements(goal: Goal) -> list[AnyRequirement]:
    return []


def install(goal: Goal) -> list[AnyResource]:
    return []


def configure(goal: Goal) -> list[AnyResource]:
    return []


def activate(goal: Goal) -> list[AnyResource]:
    return []
