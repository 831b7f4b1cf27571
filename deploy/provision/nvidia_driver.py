"""
The NVIDIA driver and the state of the GPUs.

Without `driver.version` the driver is checked, not installed: a host whose driver the row does not
allow is refused before it is changed.
"""

from deploy.provision.driver.gpu_state import UNIT_FILE, GpuUnit, unit_text
from deploy.provision.driver.plan import DriverWish
from deploy.provision.driver.resource import LoadedDriver, NvidiaDriver
from deploy.provision.requirements import AnyRequirement, Driver, GpusPresent, PinnedDriver
from deploy.provision.resources import AnyResource, File
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    if spec.row.driver_min is None:
        return []
    gpus = GpusPresent(count=spec.service.options.gpus, driver=_pinned(spec))
    if spec.driver.version is not None:
        return [gpus]
    return [Driver(row=spec.row.name, minimum=spec.row.driver_min), gpus]


def install(spec: HostSpec) -> list[AnyResource]:
    if not spec.row.needs_gpu:
        return []
    unit = File(path=UNIT_FILE, content=unit_text(spec.gpu).encode())
    wish = _wish(spec)
    return [unit] if wish is None else [unit, NvidiaDriver(wish=wish)]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    if not spec.row.needs_gpu:
        return []
    wish, unit = _wish(spec), GpuUnit(section=spec.gpu, driver=_pinned(spec))
    return [unit] if wish is None else [LoadedDriver(wish=wish), unit]


def _pinned(spec: HostSpec) -> PinnedDriver | None:
    if spec.driver.version is None:
        return None
    return PinnedDriver(version=spec.driver.version, modules=spec.driver.modules)


def _wish(spec: HostSpec) -> DriverWish | None:
    if spec.driver.version is None or spec.row.driver_min is None:
        return None
    return DriverWish(
        section=spec.driver,
        version=spec.driver.version,
        row=spec.row.name,
        minimum=spec.row.driver_min,
        keyring=spec.driver_keyring,
        turns_mig_off=spec.gpu.mig is False,
    )
