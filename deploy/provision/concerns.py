"""
The order: what a host is made of, from the packages to the running HAProxy.
"""

from collections.abc import Sequence
from typing import Protocol

from deploy.provision import (
    base,
    cuda,
    haproxy,
    host_program,
    nvidia_driver,
    python,
    runtime_unit,
    storage,
    users,
)
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource
from deploy.provision.spec import Goal
from deploy.provision.worker_request import Site


class Concern(Protocol):
    """
    One file of this package: what it asks of a host, and what it places, sets and starts there.
    """

    def requirements(self, goal: Goal) -> list[AnyRequirement]: ...

    def install(self, goal: Goal) -> list[AnyResource]: ...

    def configure(self, goal: Goal) -> list[AnyResource]: ...

    def activate(self, goal: Goal) -> list[AnyResource]: ...


ORDER: Sequence[Concern] = (
    base,
    users,
    storage,
    nvidia_driver,
    cuda,
    host_program,
    python,
    runtime_unit,
    haproxy,
)


def plan_site(goal: Goal) -> Site:
    """
    Return everything that *goal* asks of a host.
    """
    return Site(
        requirements=tuple(r for concern in ORDER for r in concern.requirements(goal)),
        placed=(
            *(r for concern in ORDER for r in concern.install(goal)),
            *(r for concern in ORDER for r in concern.configure(goal)),
        ),
        running=tuple(r for concern in ORDER for r in concern.activate(goal)),
    )
