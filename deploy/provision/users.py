"""
The user that the runtime runs as.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, User
from deploy.provision.spec import Goal


def requirements(goal: Goal) -> list[AnyRequirement]:
    return []


def install(goal: Goal) -> list[AnyResource]:
    # HAProxy reaches the slots' sockets through this user's group: `group` in haproxy.cfg, since
    # it drops the supplementary groups that its own user may have.
    return [User(user=layout.USER)]


def configure(goal: Goal) -> list[AnyResource]:
    return []


def activate(goal: Goal) -> list[AnyResource]:
    return []
