"""
From the wish of a fleet and the facts of a host to a plan, or to each conflict.  Pure.
"""

from deploy.host.protocol import Facts
from deploy.provision.driver.choice import (
    gpu_devices,
    is_built,
    kernel_suffix,
    modules_of,
    needs_fabric,
)
from deploy.provision.driver.conflicts import (
    conflicts_of,
    disk_conflicts,
    simulation_conflicts,
)
from deploy.provision.driver.files import module_files, package_files, repository_files
from deploy.provision.driver.package_sets import PackageSet, SetChoice, package_set
from deploy.provision.driver.plan import (
    FABRIC_UNIT,
    PERSISTENCE_UNIT,
    AnyStep,
    BuildModules,
    Conflict,
    DriverPlan,
    DriverWish,
    Hold,
    Install,
    LoadModules,
    Prove,
    ReadLists,
    RebuildInitramfs,
    StartUnits,
    gpu_of,
    needed_kernels,
)
from deploy.provision.driver.supply import DriverSupply, Modules, load_supplies


def plan_driver(wish: DriverWish, facts: Facts) -> DriverPlan | tuple[Conflict, ...]:
    """
    Return the whole plan for a host with *facts*, done steps included, or all conflicts.

    The conflicts of the simulated transaction are among them where *facts* has one.
    """
    supply = load_supplies().get(facts.codename)
    if supply is None:
        known = ", ".join(one.title for one in load_supplies().values())
        name = facts.codename or facts.os_id or "unknown"
        return (
            Conflict(
                why=f"the driver cannot be installed on {name}",
                fix=f"use {known}, or remove the key driver and install the driver yourself",
            ),
        )
    conflicts = conflicts_of(wish, facts, supply)
    modules = modules_of(wish, gpu_of(facts), supply)
    if conflicts or modules is None:
        return conflicts
    plan = _plan(wish, facts, supply, modules)
    if not plan.install.is_done(facts):
        conflicts = (*disk_conflicts(facts), *simulation_conflicts(plan, facts))
    return conflicts or plan


def _plan(wish: DriverWish, facts: Facts, supply: DriverSupply, modules: Modules) -> DriverPlan:
    gpu = gpu_of(facts)
    has_fabric = needs_fabric(wish, gpu)
    choice = SetChoice(
        version=wish.version,
        source=wish.section.source,
        modules=modules,
        builds=is_built(wish, supply),
        kernel=kernel_suffix(gpu, supply),
        needs_fabric=has_fabric,
    )
    packages = package_set(supply, choice)
    install = Install(
        version=wish.version,
        versioned=packages.versioned,
        others=(*packages.others, *_headers(packages, facts), *_cuda(wish)),
    )
    is_open = modules == "open"
    steps: list[AnyStep] = [
        *repository_files(wish, supply),
        *package_files(packages),
        ReadLists(install=install),
        install,
        *module_files(supply),
        RebuildInitramfs(),
        BuildModules(version=wish.version, is_open=is_open, prebuilt=packages.prebuilt),
        Hold(),
        LoadModules(version=wish.version, is_open=is_open),
        StartUnits(units=(PERSISTENCE_UNIT, *([FABRIC_UNIT] if has_fabric else []))),
        Prove(version=wish.version, gpus=len(gpu_devices(gpu)), has_fabric=has_fabric),
    ]
    return DriverPlan(steps=tuple(steps), pins=packages.pins)


def _headers(packages: PackageSet, facts: Facts) -> tuple[str, ...]:
    """
    Return the headers that the running and the next kernel lack, which their metapackage may not
    bring: it has those of the newest kernel alone.
    """
    if not packages.builds:
        return ()
    kernels = needed_kernels(gpu_of(facts))
    return tuple(f"linux-headers-{kernel.release}" for kernel in kernels if not kernel.headers)


def _cuda(wish: DriverWish) -> tuple[str, ...]:
    """
    Return the packages of CUDA that the fleet file asks for; none of them brings a driver.
    """
    asked = {"toolkit": wish.section.cuda_toolkit, "compat": wish.section.cuda_compat}
    return tuple(
        f"cuda-{name}-{version.replace('.', '-')}" for name, version in asked.items() if version
    )
