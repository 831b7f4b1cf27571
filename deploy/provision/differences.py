"""
Is the host as it should be?  Asked before, to know what to change, and after, to assert it.  Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deploy.provision.requirements import Refusal
from deploy.provision.resources import AnyResource, Difference, Packages
from deploy.provision.seen import Question, Seen
from deploy.provision.worker_request import Site


@dataclass(frozen=True, slots=True)
class Step:
    """
    One resource that is not as it should be.
    """

    resource: AnyResource
    difference: Difference


def question_of(site: Site) -> Question:
    """
    Return the one question whose answer tells everything about *site*.
    """
    found = Question()
    for part in (*site.requirements, *site.placed, *site.running):
        found = found.merged(part.question)
    return found


def refusal_of(site: Site, seen: Seen) -> Refusal | None:
    """
    Return why a host that looks like *seen* must not be touched.
    """
    for part in (*site.requirements, *site.placed, *site.running):
        refusal = part.refusal(seen)
        if refusal is not None:
            return refusal
    return None


def steps_to(site: Site, seen: Seen) -> tuple[Step, ...]:
    """
    Return what has to change, in order; empty: the host is as it should be.
    """
    return _differing((*site.placed, *site.running), seen)


def next_steps(site: Site, seen: Seen) -> tuple[Step, ...]:
    """
    Return what to change now: everything on the disk before anything that runs from it.

    What runs is judged by a look that was taken after the disk was right.  So a run that died
    between a new file and the reload is made good by the next one.
    """
    return _differing(site.placed, seen) or _differing(site.running, seen)


def bootstrap_steps(site: Site) -> tuple[Step, ...]:
    """
    Return what makes a host that has no Python fit to be looked at: all up to the packages.
    """
    steps: list[Step] = []
    for resource in site.placed:
        if isinstance(resource, Packages):
            change = f"install {', '.join(resource.names)}"
            return (*steps, Step(resource, Difference(change=change)))
        steps.append(Step(resource, Difference(change="create")))
    return tuple(steps)


def _differing(resources: Iterable[AnyResource], seen: Seen) -> tuple[Step, ...]:
    found = ((resource, resource.difference(seen)) for resource in resources)
    return tuple(Step(resource, difference) for resource, difference in found if difference)
