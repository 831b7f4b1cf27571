"""
What the fleet file leaves open about a driver, decided by the GPUs and kernels of the host.  Pure.
"""

from deploy.host.protocol import GpuHost
from deploy.provision.driver.plan import DriverWish, kernel_suffixes
from deploy.provision.driver.supply import DriverSupply, Modules, generation_of
from deploy.versions.catalog import GpuGeneration, load_catalog

_DISPLAY = "03"  # base class on the PCI bus
_BRIDGE = "0680"
_USUAL_KERNEL = {"debian": "amd64", "ubuntu": "generic"}


def gpu_devices(gpu: GpuHost) -> tuple[str, ...]:
    """
    Return the device id of each GPU on the PCI bus.
    """
    return tuple(one.device for one in gpu.devices if one.class_code.startswith(_DISPLAY))


def has_switch(gpu: GpuHost) -> bool:
    return any(one.class_code.startswith(_BRIDGE) for one in gpu.devices)


def generations(gpu: GpuHost) -> tuple[GpuGeneration, ...]:
    """
    Return the generations of the GPUs, without those that are not known.
    """
    known = {row.generation: row for row in load_catalog().generations}
    names = {generation_of(device) for device in gpu_devices(gpu)}
    return tuple(known[name] for name in sorted(name for name in names if name is not None))


def possible_modules(wish: DriverWish, gpu: GpuHost) -> tuple[Modules, ...]:
    """
    Return the kernel modules that the branch has and that every GPU of the host runs with.
    """
    branch = load_catalog().branch_of(wish.version)
    has: set[str] = set(branch.modules) if branch else {"open", "proprietary"}
    for generation in generations(gpu):
        has &= set(generation.modules)
    order: tuple[Modules, ...] = ("open", "proprietary")  # NVIDIA's default since branch 560
    return tuple(name for name in order if name in has)


def modules_of(wish: DriverWish, gpu: GpuHost, supply: DriverSupply) -> Modules | None:
    """
    Return the kernel modules to install; None: there are none that fit.
    """
    possible = possible_modules(wish, gpu)
    if wish.section.modules != "auto":
        return wish.section.modules if wish.section.modules in possible else None
    without_open = wish.section.source == "distribution" and not archive_has_open(wish, supply)
    fitting = [name for name in possible if not (without_open and name == "open")]
    return fitting[0] if fitting else None


def archive_has_open(wish: DriverWish, supply: DriverSupply) -> bool:
    return supply.open is None or wish.version in supply.open


def is_built(wish: DriverWish, supply: DriverSupply) -> bool:
    """
    Return whether DKMS builds the modules on the host.
    """
    has_prebuilt = supply.family == "ubuntu" and wish.section.source == "distribution"
    return not has_prebuilt or wish.section.build == "dkms"


def needs_fabric(wish: DriverWish, gpu: GpuHost) -> bool:
    """
    Return whether a fabric manager is to run: the boards of Blackwell show no switch on the bus.
    """
    asked = wish.section.fabric_manager
    return has_switch(gpu) if asked is None else asked


def kernel_suffix(gpu: GpuHost, supply: DriverSupply) -> str:
    """
    Return the suffix of the kernel's metapackages; the usual one where the host has none.
    """
    return next(iter(kernel_suffixes(gpu)), _USUAL_KERNEL[supply.family])
