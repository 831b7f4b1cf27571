"""
Brings bare hosts to the pinned state, and reports what differs.  Never starts or stops a slot.
"""

from typing import TYPE_CHECKING, Any

from deploy.provision.report import Change, EventKind, Failure, ProvisionEvent, ProvisionReport

if TYPE_CHECKING:
    from deploy.provision.run import provision

__all__ = ["Change", "EventKind", "Failure", "ProvisionEvent", "ProvisionReport", "provision"]


def __getattr__(name: str) -> Any:
    # Imported at first use: the worker imports this package too, and reports need no SSH.
    if name == "provision":
        from deploy.provision.run import provision

        return provision
    raise AttributeError(name)
