"""
The user that the runtime runs as.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, User
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    # HAProxy reaches the slots' sockets through this user's group: `group` in haproxy.cfg, since
    # it drops the supplementary groups that its own user may have.
    return [User(user=layout.USER)]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
