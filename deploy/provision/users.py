"""
The users of the runtime and of the sandbox that builds what bundles bring.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, User
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    # HAProxy opens the sockets of the slots as a member of this user's group.  It drops its
    # supplementary groups, so haproxy.cfg names the group.
    return [User(user=layout.USER), User(user=layout.BUILD_USER)]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
