"""
The NVIDIA driver.  Checked, not installed yet: a host whose driver the row does not allow is
refused before it is touched.
"""

from deploy.provision.requirements import AnyRequirement, Driver
from deploy.provision.resources import AnyResource
from deploy.provision.spec import Goal


def requirements(goal: Goal) -> list[AnyRequirement]:
    if goal.row.driver_min is None:
        return []
    return [Driver(row=goal.row.name, minimum=goal.row.driver_min)]


def install(goal: Goal) -> list[AnyResource]:
    return []


def configure(goal: Goal) -> list[AnyResource]:
    return []


def activate(goal: Goal) -> list[AnyResource]:
    return []
