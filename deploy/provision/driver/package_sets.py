"""
Names of packages, and the apt preferences that pin them, by source and distribution.  Pure.

Each set has the compute part of a driver alone: the packages nvidia-driver, nvidia-open and
cuda-drivers install a desktop.
"""

from collections.abc import Iterable
from typing import Literal

from deploy.provision.driver.supply import DriverSupply, Modules, Source
from deploy.provision.requirements import Frozen

PRIORITY = 1001  # above 1000 apt also goes back to an older version
# Branch with the last package names that end in the branch, in NVIDIA's repository for Ubuntu.
_LAST_SUFFIX = 580


class PackageSet(Frozen):
    """
    Attributes:
        versioned: Packages that have the version of the driver.
        others: Packages with versions of their own.
        pins: Text of the apt preferences.
        prebuilt: Start of the name of the package with the kernel modules for one kernel; None:
            DKMS builds them on the host.
    """

    versioned: tuple[str, ...]
    others: tuple[str, ...]
    pins: str
    prebuilt: str | None = None

    @property
    def builds(self) -> bool:
        return self.prebuilt is None

    @property
    def packages(self) -> tuple[str, ...]:
        return (*self.versioned, *self.others)


class SetChoice(Frozen):
    """
    What decides on a set.

    Attributes:
        kernel: Suffix of the kernel's metapackages, such as amd64 or generic-hwe-24.04.
        needs_fabric: The host has NVSwitches.
    """

    version: str
    source: Source
    modules: Modules
    builds: bool
    kernel: str
    needs_fabric: bool

    @property
    def branch(self) -> int:
        return int(self.version.split(".")[0])


def package_set(supply: DriverSupply, choice: SetChoice) -> PackageSet:
    """
    Return the packages of *choice* on the distribution of *supply*.
    """
    if choice.source == "distribution":
        return _debian(choice) if supply.family == "debian" else _ubuntu(choice)
    return _nvidia(supply.family, choice)


def _debian(choice: SetChoice) -> PackageSet:
    kernel_module = "nvidia-open-kernel-dkms" if choice.modules == "open" else "nvidia-kernel-dkms"
    sources = ["src:nvidia-graphics-drivers:any"]
    if choice.modules == "open":
        sources.append("src:nvidia-open-gpu-kernel-modules:any")
    return PackageSet(
        versioned=(kernel_module, "libcuda1", "nvidia-smi"),
        # These are sources of their own in Debian, with versions of their own.
        others=("nvidia-persistenced", "nvidia-modprobe", f"linux-headers-{choice.kernel}"),
        pins=_pins([*_never("NVIDIA", sources), *_exactly(choice.version, sources)]),
    )


def _ubuntu(choice: SetChoice) -> PackageSet:
    name = f"{choice.branch}-server"
    flavour = "-open" if choice.modules == "open" else ""
    versioned, others = [f"nvidia-utils-{name}"], []
    prebuilt = f"linux-modules-nvidia-{name}{flavour}"
    if choice.builds:
        versioned.insert(0, f"nvidia-headless-{name}{flavour}")
        others.append(f"linux-headers-{choice.kernel}")
    else:
        versioned.insert(0, f"nvidia-headless-no-dkms-{name}{flavour}")
        # It has the version of the kernel, and wants exactly one version of the driver.
        others.append(f"{prebuilt}-{choice.kernel}")
    if choice.needs_fabric:
        versioned.append(f"nvidia-fabricmanager-{choice.branch}")
    patterns = [f"*nvidia*-{name}*", f"*nvidia*-{choice.branch}"]
    return PackageSet(
        versioned=tuple(versioned),
        others=tuple(others),
        pins=_pins([*_never("NVIDIA", ["*nvidia*"]), *_exactly(choice.version, patterns)]),
        prebuilt=None if choice.builds else prebuilt,
    )


def _nvidia(family: Literal["debian", "ubuntu"], choice: SetChoice) -> PackageSet:
    is_open = choice.modules == "open"
    if family == "debian":
        module = "nvidia-kernel-open-dkms" if is_open else "nvidia-kernel-dkms"
        versioned = ["nvidia-driver-cuda", module]
        others_archive = _never("Debian", ["src:nvidia-graphics-drivers:any"])
    else:
        suffix = f"-{choice.branch}" if choice.branch <= _LAST_SUFFIX else ""
        module = f"nvidia-dkms{suffix}-open" if is_open else f"nvidia-dkms{suffix}"
        versioned = [f"libnvidia-compute{suffix}", module, f"nvidia-utils{suffix}"]
        if suffix:  # it has the persistence daemon; later it is a dependency
            versioned.append(f"nvidia-compute-utils{suffix}")
        others_archive = _never("Ubuntu", ["*nvidia*"])
    if choice.needs_fabric:
        suffix = f"-{choice.branch}" if choice.branch < _LAST_SUFFIX else ""
        versioned.append(f"nvidia-fabricmanager{suffix}")
    patterns = ["src:nvidia-graphics-drivers:any", "*nvidia*", "libcuda1"]
    return PackageSet(
        versioned=tuple(versioned),
        others=(f"linux-headers-{choice.kernel}",),
        pins=_pins([*others_archive, *_exactly(choice.version, patterns)]),
    )


def _never(origin: str, patterns: Iterable[str]) -> list[str]:
    # Before the other stanza: of several that match a version, apt takes the first.
    return [_stanza(patterns, f"release o={origin}", -1)]


def _exactly(version: str, patterns: Iterable[str]) -> list[str]:
    return [_stanza(patterns, f"version {version}*", PRIORITY)]


def _stanza(patterns: Iterable[str], pin: str, priority: int) -> str:
    return f"Package: {' '.join(patterns)}\nPin: {pin}\nPin-Priority: {priority}\n"


def _pins(stanzas: Iterable[str]) -> str:
    return "# Written by inv provision; edits are lost.\n" + "\n".join(stanzas)
