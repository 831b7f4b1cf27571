"""
What the step of the NVIDIA driver is decided from: devices, kernels, packages, leftovers.

Reads only, and nothing here waits for a driver: `gpu_smi` asks that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from deploy.host.gpu_smi import fabric_states, read_gpus
from deploy.host.protocol import (
    DriverPackage,
    GpuHost,
    HostError,
    Kernel,
    KernelModule,
    PciDevice,
)
from deploy.host.reboot_reasons import MODULE_NAMES
from deploy.host.system import System

_VENDOR = "0x10de"
_DISPLAY = "03"  # base class of a GPU
_BRIDGE = "0680"  # class and subclass of an NVSwitch
_NAMES_MAX = 64  # of devices, files and processes in an answer
_WATCHED = (
    "nouveau",
    "nova_core",
    "nova_drm",
    "nvidia",
    "nvidia_uvm",
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia_peermem",
    "vfio_pci",
)
# Not by a package: NVIDIA's installer for every distribution leaves them.
_LEFTOVERS = ("usr/bin/nvidia-uninstall", "usr/bin/nvidia-installer", "var/lib/nvidia/log")
_DRIVER_PACKAGE = re.compile(r"nvidia|libnvidia|cuda|libcuda|linux-restricted|fabric-manager")
_KERNEL_PACKAGE = re.compile(
    r"linux-(?:image|headers|generic|modules|virtual|aws|gcp|azure|oracle|lowlatency)"
)
COLUMNS = "${source:Package}\\t${db:Status-Abbrev}\\t${Package}\\t${Version}\\n"  # of dpkg-query
_LIBRARIES = ("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "usr/lib64/libnvidia-ml.so.1",
              "usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1")  # fmt: skip
_OWN_SOURCES = ("slipway.sources", "slipway-nvidia.sources")
_READ_BY_APT = re.compile(
    r"[A-Za-z0-9_.-]+\.(?:list|sources)"
)  # apt.conf(5): no .save, .distUpgrade
# Source: sources.list(5), Enabled, and apt's StringToBool.
_SWITCHED_OFF = re.compile(r"(?im)^Enabled:\s*(?:no|false|without|off|disable|0)\s*$")
_OWN_KEYRING = "usr/share/keyrings/slipway-nvidia.gpg"
_DAY_S = 24 * 3600.0
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_MOK_KEYS = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub")  # Ubuntu's, Debian's
_PROGRAM_TIMEOUT_S = 20.0


def read_gpu_host(system: System) -> GpuHost:
    """
    Return what the host has of GPUs, kernels and the driver.

    Raises:
        HostError: dpkg-query failed.
    """
    root = Path(system.layout.root)
    devices = tuple(_devices(root))
    loaded = tuple(name for name in _WATCHED if (root / "sys/module" / name).is_dir())
    has_switch = any(device.class_code.startswith(_BRIDGE) for device in devices)
    gpus, problem = read_gpus(system) if "nvidia" in loaded else ((), "no driver is loaded")
    return GpuHost(
        devices=devices,
        kernels=tuple(_kernels(system, root)),
        secure_boot=_secure_boot(root),
        mok_enrolled=_mok_enrolled(system, root),
        packages=tuple(_packages(system, root)),
        leftovers=tuple(_leftovers(root)),
        repositories=tuple(_repositories(root)),
        old_lists=_has_old_lists(system, root),
        boot_free=_boot_free(system, root),
        initramfs_size=max(_sizes(root.glob("boot/initrd.img-*")), default=0),
        loaded=loaded,
        library=_library(root),
        holders=tuple(_holders(root)),
        gpus=gpus,
        smi_problem=problem,
        fabric=fabric_states(system) if has_switch and gpus else (),
    )


def _devices(root: Path) -> Iterator[PciDevice]:
    folders = sorted((root / "sys/bus/pci/devices").glob("*"))
    for folder in folders:
        class_code = _text(folder / "class")[2:8]
        is_ours = class_code.startswith((_DISPLAY, _BRIDGE))
        if _text(folder / "vendor") != _VENDOR or not is_ours:
            continue
        driver = folder / "driver"
        yield PciDevice(
            place=folder.name,
            device=_text(folder / "device")[2:6],
            class_code=class_code,
            bound=driver.resolve().name if driver.exists() else None,
        )


def _kernels(system: System, root: Path) -> Iterator[Kernel]:
    running = _text(root / "proc/sys/kernel/osrelease")
    releases = {path.name for path in (root / "lib/modules").glob("*") if path.is_dir()}
    for release in sorted(releases | {running} - {""}):
        yield Kernel(
            release=release,
            running=release == running,
            bootable=(root / f"boot/vmlinuz-{release}").exists(),
            headers=(root / f"lib/modules/{release}/build/Makefile").exists(),
            old_initramfs=_is_old(root, release),
            modules=tuple(_modules(system, root, release)),
        )


def _is_old(root: Path, release: str) -> bool:
    """
    True if the initramfs of *release* was written before our configuration of modules.
    """
    try:
        written_s = (root / f"boot/initrd.img-{release}").stat().st_mtime
        return written_s < (root / "etc/modprobe.d/slipway-nouveau.conf").stat().st_mtime
    except OSError:
        return False


def _modules(system: System, root: Path, release: str) -> Iterator[KernelModule]:
    if not (root / f"lib/modules/{release}/modules.dep").exists():
        return
    for name in MODULE_NAMES:
        values = _modinfo(system, release, name)
        if "version" in values:
            yield KernelModule(
                module=name,
                version=values["version"],
                license=values.get("license", ""),
            )


def _modinfo(system: System, release: str, name: str) -> dict[str, str]:
    try:
        result = system.run(["modinfo", "-k", release, name], timeout_s=_PROGRAM_TIMEOUT_S)
    except HostError:
        return {}  # no modinfo: no module was ever installed
    pairs = (line.partition(":") for line in result.stdout.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def _secure_boot(root: Path) -> bool | None:
    try:
        return (root / _SECURE_BOOT).read_bytes()[4:5] == b"\x01"  # four bytes of attributes first
    except OSError:
        return None


def _mok_enrolled(system: System, root: Path) -> bool | None:
    for key in _MOK_KEYS:
        if not (root / key).exists():
            continue
        try:
            result = system.run(["mokutil", "--test-key", f"/{key}"], timeout_s=_PROGRAM_TIMEOUT_S)
        except HostError:
            return None
        return "is already enrolled" in result.stdout
    return None


def _packages(system: System, root: Path) -> Iterator[DriverPackage]:
    if not (root / "usr/bin/dpkg-query").exists():
        return
    result = system.run(["dpkg-query", "-W", "-f", COLUMNS], timeout_s=_PROGRAM_TIMEOUT_S)
    yield from parse_packages(result.stdout)


def parse_packages(output: str) -> Iterator[DriverPackage]:
    """
    Yield the packages of drivers and kernels in *output*, of dpkg-query with COLUMNS.
    """
    for line in output.splitlines():
        columns = line.split("\t")
        if len(columns) != 4:
            continue
        source, state, package, version = columns
        if state[1:2] in ("c", "n"):  # removed; of some packages the configuration is left
            continue
        is_driver = _DRIVER_PACKAGE.match(source) or _DRIVER_PACKAGE.match(package)
        if version and (is_driver or _KERNEL_PACKAGE.match(package)):
            yield DriverPackage(
                package=package,
                version=version,
                origin=source,
                complete=state[1:2] == "i" and state[2:3] in ("", " "),
                held=state[:1] == "h",
            )


def _leftovers(root: Path) -> Iterator[str]:
    for path in _LEFTOVERS:
        if (root / path).exists():
            yield f"/{path}"
    # Packages place modules elsewhere: DKMS below updates, Ubuntu below kernel/nvidia-BRANCH.
    for module in sorted(root.glob("lib/modules/*/kernel/drivers/video/nvidia*.ko*"))[:_NAMES_MAX]:
        yield f"/{module.relative_to(root)}"


def _repositories(root: Path) -> Iterator[str]:
    apt = root / "etc/apt"
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))][:_NAMES_MAX]:
        if path.name in _OWN_SOURCES or not _READ_BY_APT.fullmatch(path.name):
            continue
        lines = _text(path).splitlines() if path.is_file() else []
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        entries = text.split("\n\n") if path.suffix == ".sources" else [text]
        if any(re.search(r"nvidia|/cuda/", e) for e in entries if not _SWITCHED_OFF.search(e)):
            yield f"/{path.relative_to(root)}"


def _has_old_lists(system: System, root: Path) -> bool:
    """
    True if apt's lists are older than a day, or than our source of packages or its key.
    """
    try:
        read_s = (root / "var/lib/apt/lists").stat().st_mtime
    except OSError:
        return True
    ours = [root / "etc/apt/sources.list.d" / name for name in _OWN_SOURCES]
    placed_s = [path.stat().st_mtime for path in [*ours, root / _OWN_KEYRING] if path.exists()]
    return read_s < max([system.wall_s() - _DAY_S, *placed_s])


def _boot_free(system: System, root: Path) -> int:
    boot = root / "boot"
    return system.free_bytes(boot if boot.is_dir() else root)


def _library(root: Path) -> str | None:
    for path in _LIBRARIES:
        target = (root / path).resolve().name
        found = re.fullmatch(r"libnvidia-ml\.so\.([0-9]+(?:\.[0-9]+)+)", target)
        if found and (root / path).exists():
            return found[1]
    return None


def _holders(root: Path) -> Iterator[str]:
    seen = 0
    for process in (root / "proc").glob("[0-9]*"):
        if seen < _NAMES_MAX and _has_device(process):
            seen += 1
            yield f"{_text(process / 'comm') or '?'} (pid {process.name})"


def _has_device(process: Path) -> bool:
    try:
        entries = list(os.scandir(process / "fd"))
    except OSError:
        return False  # it has ended
    for entry in entries:
        try:
            if os.readlink(entry.path).startswith("/dev/nvidia"):  # noqa: PTH115 - much faster
                return True
        except OSError:
            continue
    return False


def _sizes(paths: Iterator[Path]) -> Iterator[int]:
    for path in paths:
        try:
            yield path.stat().st_size
        except OSError:
            continue


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
