"""
Whether the version matrix allows a row on a host, from the facts of the host.  Pure.
"""

import re
from dataclasses import dataclass
from datetime import date

from deploy.host.protocol import Facts
from deploy.versions.catalog import Catalog, Distribution, Modules, load_catalog
from deploy.versions.matrix import load_matrix
from deploy.versions.policy import load_policy
from deploy.versions.question import find_gpu
from deploy.versions.resolution import (
    DriverVerdict,
    HostFacts,
    NearestRow,
    Resolution,
    Wish,
)
from deploy.versions.resolver import resolve

_NEAREST_MAX = 3
_GPUS_MAX, _MODEL_MAX = 64, 100  # models of a host, and characters of each
_DRIVER = re.compile(r"[0-9]{3}\.[0-9]{1,3}(\.[0-9]{1,3})?")
_WORDS = {
    "torch": "another torch",
    "cuda": "another CUDA",
    "python": "another Python",
    "driver": "another driver",
    "gpu": "other GPUs",
    "os": "another distribution",
    "modules": "the other kernel modules",
    "fabric_manager": "the fabric manager of the driver's version",
}


@dataclass(frozen=True, slots=True)
class RowConflict:
    """
    Attributes:
        conflicts: Every set of pins that contradict each other.
        nearest: The nearest rows that would do, and those that a fleet file can name.
    """

    conflicts: str
    nearest: str


def distribution_of(catalog: Catalog, facts: Facts) -> Distribution | None:
    """
    Return the distribution of a host; None: the catalog does not have it.
    """
    for row in catalog.distributions:
        if row.codename == facts.codename and row.name.startswith(facts.os_id or "-"):
            return row
    return None


def host_facts(catalog: Catalog, facts: Facts, driver: str | None = None) -> HostFacts:
    """
    Return *facts* as the resolver takes them; what has no meaning is not known.

    Args:
        driver: The version that takes the place of the loaded driver, and of its modules.
    """
    models = (model[:_MODEL_MAX] for model in facts.gpus[:_GPUS_MAX])
    gpus = {gpu.name: gpu for model in models if (gpu := find_gpu(catalog, model))}
    modules = _modules(facts.gpu_modules) if driver is None else None
    driver = driver or facts.driver
    return HostFacts(
        driver=driver if driver and _DRIVER.fullmatch(driver) else None,
        gpus=tuple(gpus.values()),
        distribution=distribution_of(catalog, facts),
        modules=modules,
        has_nvswitch=facts.nvswitch,
    )


def row_conflict(
    facts: Facts, *, torch: str, cuda: str, python: str, driver: str | None = None
) -> RowConflict | None:
    """
    Return why a host must not have torch *torch* with *cuda* and *python*; None: it may.

    A row that the driver runs with cuda-compat alone is refused too: that is not installed.

    Args:
        driver: The version that is installed in place of the loaded one; None: that one stays.
    """
    host = host_facts(load_catalog(), facts, driver)
    return _conflict(Wish(torch, cuda, python), host)


def pin_conflict(*, torch: str, cuda: str, python: str, driver: str) -> RowConflict | None:
    """
    Return why no host may have *driver* with that row; None: some may.
    """
    return _conflict(Wish(torch, cuda, python), HostFacts(driver=driver))


def _conflict(wish: Wish, host: HostFacts) -> RowConflict | None:
    catalog = load_catalog()
    resolution = _resolve(catalog, wish, host)
    if not resolution.fits:
        return RowConflict(
            _reasons(resolution), _nearest(resolution) + _provisionable(catalog, host)
        )
    [fit] = resolution.fits
    if fit.verdict is not DriverVerdict.OK_COMPAT:
        return None
    return RowConflict(
        f"driver {host.driver} runs CUDA {wish.cuda} with the package cuda-compat alone, which "
        "provisioning does not install",
        f"update the driver to {fit.driver_min} or later" + _provisionable(catalog, host),
    )


def _resolve(catalog: Catalog, wish: Wish, host: HostFacts) -> Resolution:
    # The day only matters to warnings, which are not shown here.
    return resolve(catalog, load_policy(), wish, host, today=date.fromisoformat(catalog.date))


def _reasons(resolution: Resolution) -> str:
    """
    Return the reasons of all conflicts, each once: several may have the same.
    """
    said: dict[str, None] = {}
    for conflict in resolution.conflicts:
        if not said.keys() >= set(conflict.reasons):
            said.update(dict.fromkeys((*conflict.reasons, *filter(None, [conflict.more]))))
    return "; ".join(said)


def _nearest(resolution: Resolution) -> str:
    rows = resolution.nearest[:_NEAREST_MAX]
    if not rows:
        return "no row fits this host, whatever is changed"
    return "nearest: " + "; ".join(map(_title, rows))


def _provisionable(catalog: Catalog, host: HostFacts) -> str:
    """
    Return the rows that fit *host* and have a lock, as the end of a sentence.
    """
    runs = (DriverVerdict.OK, DriverVerdict.OK_MINOR, None)
    fits = {fit.name for fit in _resolve(catalog, Wish(), host).fits if fit.verdict in runs}
    names = [row.name for row in load_matrix().rows if row.lock and row.family in fits]
    return f"; fits as the host is: {', '.join(names)}" if names else ""


def _title(near: NearestRow) -> str:
    changed = " and ".join(_WORDS[pin] for pin in near.changed)
    text = f"{near.fit.name} on Python {near.fit.python} ({changed})"
    if "driver" in near.changed and near.fit.driver_min:
        text = f"{text[:-1]}: {near.fit.driver_min} or later)"
    return text


def _modules(found: str | None) -> Modules | None:
    return "open" if found == "open" else "proprietary" if found == "proprietary" else None
