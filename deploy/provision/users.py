"""
The users of the slots and of the sandbox that builds what bundles bring, and the user whose group
reads what they run.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource
from deploy.provision.spec import HostSpec
from deploy.provision.user_resources import User


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    # A slot runs as a user of its own, so that it can neither signal nor trace the other one, nor
    # open its socket.  Its unit adds the group that reads releases, weights and configuration.
    slots = (layout.slot_user(slot) for slot in layout.SLOTS)
    return [User(user=user) for user in (layout.USER, layout.BUILD_USER, *slots)]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
