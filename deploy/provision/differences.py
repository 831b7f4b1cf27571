"""
Compares the facts of a host with its resources, before and after changes.  Pure.
"""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_sources import AptSources
from deploy.provision.driver.gpu_state import GpuUnit
from deploy.provision.driver.resource import LoadedDriver, NvidiaDriver
from deploy.provision.interpreter_resource import StandalonePython
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import Absent, AnyResource, ComparedTorch, Upload, Venv
from deploy.provision.slot_resources import SlotUnit


@dataclass(frozen=True, slots=True)
class ResourceStep:
    """
    One resource that differs, with its difference.
    """

    resource: AnyResource
    difference: Difference


def fact_query(resource_set: ResourceSet, *, deep: bool = False) -> FactQuery:
    """
    Return one query for all facts that *resource_set* is compared with.

    Args:
        deep: Compare every file of the Python environment by its hash.
    """
    parts = (*resource_set.requirements, *resource_set.placed, *resource_set.running)
    return replace(merge_queries(part.query for part in parts), deep=deep)


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
                # One part asks for a hash ("" asks for none), another only what the path is.
                merged[field.name] = before | {
                    k: v for k, v in value.items() if v or k not in before
                }
            elif isinstance(value, tuple):
                merged[field.name] = (*before, *(one for one in value if one not in before))
            elif value:
                merged[field.name] = value
    return FactQuery(**merged)


def follow_up(resource_set: ResourceSet, query: FactQuery, facts: Facts) -> FactQuery | None:
    """
    Return the query that repeats *query*, answered by *facts*, and asks for what depends on them.

    None: nothing does.
    """
    asked = (r.follow_up(facts) for r in resource_set.placed if isinstance(r, NvidiaDriver))
    more = [one for one in asked if one is not None]
    return merge_queries([query, *more]) if more else None


def installs_driver(resource_set: ResourceSet, facts: Facts | None) -> bool:
    """
    Return whether a host with *facts* gets another driver, which takes long.
    """
    return any(
        isinstance(resource, NvidiaDriver)
        and (facts is None or resource.difference(facts) is not None)
        for resource in resource_set.placed
    )


def refusal_of(resource_set: ResourceSet, facts: Facts) -> HostRefusal | None:
    """
    Return why a host with *facts* cannot be brought to, or kept at, *resource_set*; None if it can.

    Requirements hold on a host where nothing differs too, but for those of changes.
    """
    is_changed = bool(steps_to(resource_set, facts))
    for requirement in resource_set.requirements:
        if is_changed or not requirement.is_for_changes:
            refusal = requirement.refusal(facts)
            if refusal is not None:
                return refusal
    return obstacle_of(resource_set, facts)


def obstacle_of(resource_set: ResourceSet, facts: Facts) -> HostRefusal | None:
    """
    Return what on a host with *facts* keeps a resource from its state; None if nothing does.
    """
    for resource in (*resource_set.placed, *resource_set.running):
        refusal = resource.refusal(facts)
        if refusal is not None:
            return refusal
    return _immutable(steps_to(resource_set, facts), facts)


def _immutable(steps: Iterable[ResourceStep], facts: Facts) -> HostRefusal | None:
    """
    Return the refusal of a host where the file system protects what is to be changed.
    """
    for step in steps:
        query = step.resource.query
        for path in (*query.paths, *query.secrets):
            held = [p for p in (path, posixpath.dirname(path)) if p in facts.immutable]
            if held:
                return HostRefusal(
                    error="PreconditionError",
                    why=f"{step.resource.name}: {step.difference.change}: {held[0]} is protected "
                    "from every change (chattr +i or +a)",
                    fix=f"on the host: chattr -i -a {held[0]}; then: inv provision",
                )
    return None


def steps_to(resource_set: ResourceSet, facts: Facts) -> tuple[ResourceStep, ...]:
    """
    Return all changes that a host with *facts* needs, in order; empty if none.
    """
    return _differing((*resource_set.placed, *resource_set.running), facts)


def next_steps(resource_set: ResourceSet, facts: Facts) -> tuple[ResourceStep, ...]:
    """
    Return the changes of the next round: the disk first, then what runs from it.

    Services are compared with facts that were read after the disk was right.  So the next run
    completes one that ended between a new file and the reload.  Slots wait a round for the driver
    where torch is to be compared with it: they may fill the GPUs.
    """
    steps = _differing(resource_set.placed, facts) or _differing(resource_set.running, facts)
    is_owed = any(
        isinstance(resource, ComparedTorch) and resource.is_owed(facts)
        for resource in resource_set.running
    )
    if not is_owed or not any(isinstance(s.resource, LoadedDriver | GpuUnit) for s in steps):
        return steps
    return tuple(step for step in steps if not isinstance(step.resource, SlotUnit))


def bootstrap_steps(resource_set: ResourceSet) -> tuple[ResourceStep, ...]:
    """
    Return the changes that give a host its Python: everything up to the packages.
    """
    steps: list[ResourceStep] = []
    for resource in resource_set.placed:
        if isinstance(resource, Packages):
            change = f"install {', '.join(resource.names)}"
            return (*steps, ResourceStep(resource, Difference(change=change)))
        is_removal = isinstance(resource, Absent) or (
            isinstance(resource, AptSources) and not resource.sources
        )
        if not is_removal:  # compared once the host has Python
            steps.append(ResourceStep(resource, Difference(change="create")))
    return tuple(steps)


def needs_environment(resource_set: ResourceSet, facts: Facts | None) -> bool:
    """
    Return whether the Python environment of a host with *facts*, its Python or uv is to be changed.
    """
    return any(
        isinstance(resource, Venv | Upload | StandalonePython)
        and (facts is None or resource.difference(facts) is not None)
        for resource in resource_set.placed
    )


def _differing(resources: Iterable[AnyResource], facts: Facts) -> tuple[ResourceStep, ...]:
    pairs = ((resource, resource.difference(facts)) for resource in resources)
    return tuple(ResourceStep(resource, difference) for resource, difference in pairs if difference)
