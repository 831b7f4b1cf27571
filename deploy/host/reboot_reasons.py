"""
Why the host has to be rebooted: what was installed, and takes effect at the next boot.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploy.host.gpu_smi import read_gpus
from deploy.host.protocol import HostError, RebootReason
from deploy.host.system import System
from deploy.host.text import one_line

_TIMEOUT_S = 20.0
_TEXT_MAX = 4096
_KERNEL = "vmlinuz-"
MODULE_NAMES = ("nvidia", "nvidia-current", "nvidia-current-open")  # Debian's have other names
_OTHERS = ("nouveau", "nova_core")  # drivers of the kernel for the same GPUs
_BLACKLIST = "/etc/modprobe.d/slipway-nouveau.conf"
_GPU_UNIT = "/etc/systemd/system/slipway-gpu.service"
_SMI_S = 5.0  # less than a call of `status` has


def reasons(system: System) -> tuple[RebootReason, ...]:
    """
    Return why the host has to be rebooted; empty: it has not.
    """
    driver = _other_driver(system) or _driver(system)
    # nvidia-smi does not work before such a reboot.
    gpus = _gpus(system) if driver is None else None
    found = (_packages(system), _kernel(system), driver, gpus)
    return tuple(reason for reason in found if reason is not None)


def _packages(system: System) -> RebootReason | None:
    """
    What the packages asked for, by Debian's and Ubuntu's convention.
    """
    mark = _at(system, "/run/reboot-required")
    if not mark.exists():
        return None
    names = sorted(set(_text(mark.with_name("reboot-required.pkgs")).split()))
    return RebootReason("packages", ", ".join(names) or "/run/reboot-required is there")


def _kernel(system: System) -> RebootReason | None:
    """
    Another kernel is installed than runs.  A container has none of its own.
    """
    if _at(system, "/run/systemd/container").exists():
        return None
    installed = _installed_kernel(system)
    running = system.kernel()
    if installed is None or installed == running:
        return None
    return RebootReason("kernel", f"{running} runs, {installed} is installed")


def _installed_kernel(system: System) -> str | None:
    """
    Return the release of the kernel that the next boot starts; None: none is installed.
    """
    for link in ("/boot/vmlinuz", "/vmlinuz"):  # of Ubuntu, of Debian
        path = _at(system, link)
        if path.is_symlink():
            name = path.readlink().name
            if name.startswith(_KERNEL):
                return name[len(_KERNEL) :]
    names = [path.name[len(_KERNEL) :] for path in _at(system, "/boot").glob(f"{_KERNEL}*")]
    return max(names, key=_version, default=None)


def _version(release: str) -> list[tuple[int, str]]:
    # Numbers as numbers: 6.1.0-9 is older than 6.1.0-18.
    parts = re.findall(r"\d+|\D+", release)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _other_driver(system: System) -> RebootReason | None:
    """
    A driver of the kernel has the GPUs, and provisioning has switched it off for the next boot.
    """
    if not _at(system, _BLACKLIST).exists():
        return None
    loaded = [name for name in _OTHERS if _at(system, f"/sys/module/{name}").is_dir()]
    if not loaded:
        return None
    return RebootReason("driver", f"{' and '.join(loaded)} is loaded, and off from the next boot")


def _driver(system: System) -> RebootReason | None:
    """
    Another NVIDIA driver, or another flavour of its modules, is installed than is loaded.
    """
    loaded = _text(_at(system, "/sys/module/nvidia/version")).strip()
    installed = _installed_driver(system) if loaded else None
    if installed is None:
        return None
    name, version = installed
    if version != loaded:
        return RebootReason("driver", f"{loaded} is loaded, {version} is installed")
    shown = _text(_at(system, "/proc/driver/nvidia/version"))
    license_ = _modinfo(system, "license", name)
    if not shown or not license_ or ("Open Kernel Module" in shown) == ("GPL" in license_):
        return None
    flavours = ("proprietary", "open") if "GPL" in license_ else ("open", "proprietary")
    return RebootReason(
        "driver", f"{flavours[0]} modules {loaded} are loaded, {flavours[1]} ones are installed"
    )


def waits_for_driver(system: System) -> bool:
    """
    Return whether another version of the NVIDIA driver is installed than is loaded.
    """
    loaded = _text(_at(system, "/sys/module/nvidia/version")).strip()
    installed = _installed_driver(system) if loaded else None
    return installed is not None and installed[1] != loaded


def _installed_driver(system: System) -> tuple[str, str] | None:
    """
    Return name and version of the NVIDIA module that the running kernel would load; None: it has
    none.
    """
    for name in MODULE_NAMES:
        version = _modinfo(system, "version", name)
        if version:
            return name, version
    return None


def _modinfo(system: System, field: str, name: str) -> str:
    try:
        done = system.run(["modinfo", "-F", field, name], timeout_s=_TIMEOUT_S)
    except HostError:
        return ""
    return one_line(done.stdout) if done.returncode == 0 else ""


def _gpus(system: System) -> RebootReason | None:
    """
    A setting of a GPU waits for the next boot.  Asked only where the fleet file has such a setting.
    """
    unit = _text(_at(system, _GPU_UNIT))
    asked = [what for what, option in (("ECC", "--ecc-config="), ("MIG", "--multi-instance-gpu="))
             if option in unit]  # fmt: skip
    if not asked or not _at(system, "/sys/module/nvidia").is_dir():
        return None
    gpus, _ = read_gpus(system, timeout_s=_SMI_S)
    waiting = [
        f"{what} of {gpu.bus}"
        for gpu in gpus
        for what, now, following in (
            ("ECC", gpu.ecc, gpu.next_ecc),
            ("MIG", gpu.mig, gpu.next_mig),
        )
        if what in asked and None not in (now, following) and now != following
    ]
    if not waiting:
        return None
    return RebootReason("gpu", f"changes with the next boot: {', '.join(waiting)}")


def _at(system: System, path: str) -> Path:
    return Path(system.layout.root) / path.lstrip("/")


def _text(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(_TEXT_MAX)
    except OSError:
        return ""
