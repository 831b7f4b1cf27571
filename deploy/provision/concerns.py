"""
All concerns in their order, from the packages to the running HAProxy.
"""

from collections.abc import Sequence
from typing import Protocol

from deploy.provision import (
    base,
    cuda,
    data_disk,
    deadman,
    haproxy,
    host_program,
    nvidia_driver,
    python,
    runtime_unit,
    storage,
    tls,
    users,
)
from deploy.provision.driver.gpu_state import GpuUnit
from deploy.provision.driver.resource import LoadedDriver
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import AnyResource, ComparedTorch
from deploy.provision.slot_resources import SlotUnit
from deploy.provision.spec import HostSpec


class Concern(Protocol):
    """
    One module of this package: its requirements, and what it installs, configures and activates.
    """

    def requirements(self, spec: HostSpec) -> list[AnyRequirement]: ...

    def install(self, spec: HostSpec) -> list[AnyResource]: ...

    def configure(self, spec: HostSpec) -> list[AnyResource]: ...

    def activate(self, spec: HostSpec) -> list[AnyResource]: ...


ORDER: Sequence[Concern] = (
    base,
    users,
    data_disk,
    storage,
    nvidia_driver,
    cuda,
    host_program,
    python,
    runtime_unit,
    tls,
    haproxy,
    deadman,
)


def plan_resources(spec: HostSpec) -> ResourceSet:
    """
    Return all requirements and resources of *spec*.
    """
    return ResourceSet(
        requirements=tuple(r for concern in ORDER for r in concern.requirements(spec)),
        placed=(
            *(r for concern in ORDER for r in concern.install(spec)),
            *(r for concern in ORDER for r in concern.configure(spec)),
        ),
        running=tuple(sorted((r for c in ORDER for r in c.activate(spec)), key=_turn)),
    )


def _turn(resource: AnyResource) -> int:
    """
    Return when *resource* is started in a round: what GPUs can keep from its state comes last, and
    then the slots, which need the GPUs.  A host whose GPUs do not work still gets everything else.

    A driver or nvidia_uvm that this round loads lets torch be compared in the next one, in which
    the slots that wait for it start too: `next_steps`.
    """
    if isinstance(resource, LoadedDriver | GpuUnit):
        return 1
    if isinstance(resource, ComparedTorch):
        return 2
    return 3 if isinstance(resource, SlotUnit) else 0
