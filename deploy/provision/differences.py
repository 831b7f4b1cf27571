"""
Is the host as it should be?  Asked before, to know what to change, and after, to assert it.  Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import Refusal
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import AnyResource, Difference, Packages


@dataclass(frozen=True, slots=True)
class Step:
    """
    One resource that is not as it should be.
    """

    resource: AnyResource
    difference: Difference


def fact_query(resource_set: ResourceSet) -> FactQuery:
    """
    Return the one query whose answer tells everything about *resource_set*.
    """
    parts = (*resource_set.requirements, *resource_set.placed, *resource_set.running)
    return merge_queries(part.query for part in parts)


def merge_queries(queries: Iterable[FactQuery]) -> FactQuery:
    """
    Return one query for everything that *queries* ask for.
    """
    merged: dict[str, Any] = {}
    for query in queries:
        for field in fields(FactQuery):
            value, before = getattr(query, field.name), merged.get(field.name)
            if before is None or before == ():
                merged[field.name] = value
            elif isinstance(value, dict):
                merged[field.name] = before | value
            elif isinstance(value, tuple):
                merged[field.name] = (*before, *(one for one in value if one not in before))
            elif value:
                merged[field.name] = value
    return FactQuery(**merged)


def refusal_of(resource_set: ResourceSet, facts: Facts) -> Refusal | None:
    """
    Return why a host that looks like *facts* must not be touched.
    """
    for part in (*resource_set.requirements, *resource_set.placed, *resource_set.running):
        refusal = part.refusal(facts)
        if refusal is not None:
            return refusal
    return None


def steps_to(resource_set: ResourceSet, facts: Facts) -> tuple[Step, ...]:
    """
    Return what has to change, in order; empty: the host is as it should be.
    """
    return _differing((*resource_set.placed, *resource_set.running), facts)


def next_steps(resource_set: ResourceSet, facts: Facts) -> tuple[Step, ...]:
    """
    Return what to change now: everything on the disk before anything that runs from it.

    What runs is judged by a look that was taken after the disk was right.  So a run that died
    between a new file and the reload is made good by the next one.
    """
    return _differing(resource_set.placed, facts) or _differing(resource_set.running, facts)


def bootstrap_steps(resource_set: ResourceSet) -> tuple[Step, ...]:
    """
    Return what makes a host that has no Python fit to be looked at: all up to the packages.
    """
    steps: list[Step] = []
    for resource in resource_set.placed:
        if isinstance(resource, Packages):
            change = f"install {', '.join(resource.names)}"
            return (*steps, Step(resource, Difference(change=change)))
        steps.append(Step(resource, Difference(change="create")))
    return tuple(steps)


def _differing(resources: Iterable[AnyResource], facts: Facts) -> tuple[Step, ...]:
    found = ((resource, resource.difference(facts)) for resource in resources)
    return tuple(Step(resource, difference) for resource, difference in found if difference)
