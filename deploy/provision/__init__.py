"""
Brings bare hosts to the pinned state, and says what differs.  Never starts or stops a slot.
"""

from typing import TYPE_CHECKING, Any

from deploy.provision.report import Change, EventKind, Failure, ProvisionEvent, ProvisionReport

if TYPE_CHECKING:
    from deploy.provision.run import provision

__all__ = ["Change", "EventKind", "Failure", "ProvisionEvent", "ProvisionReport", "provision"]


def __getattr__(name: str) -> Any:
    # The worker imports this package too, and is not to wait for templates and the wheelhouse.
    if name == "provision":
        from deploy.provision.run import provision

        return provision
    raise AttributeError(name)
