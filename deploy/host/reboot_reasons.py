"""
Why the host has to be rebooted: what was installed, and takes effect at the next boot.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploy.host.protocol import HostError, RebootReason
from deploy.host.system import System
from deploy.host.text import one_line

_TIMEOUT_S = 20.0
_TEXT_MAX = 4096
_KERNEL = "vmlinuz-"


def reasons(system: System) -> tuple[RebootReason, ...]:
    """
    Return why the host has to be rebooted; empty: it has not.
    """
    found = (_packages(system), _kernel(system), _driver(system))
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


def _driver(system: System) -> RebootReason | None:
    """
    Another NVIDIA driver is installed than is loaded.
    """
    loaded = _text(_at(system, "/sys/module/nvidia/version")).strip()
    if not loaded:
        return None
    try:
        done = system.run(["modinfo", "-F", "version", "nvidia"], timeout_s=_TIMEOUT_S)
    except HostError:
        return None
    installed = one_line(done.stdout)
    if done.returncode != 0 or not installed or installed == loaded:
        return None
    return RebootReason("driver", f"{loaded} is loaded, {installed} is installed")


def _at(system: System, path: str) -> Path:
    return Path(system.layout.root) / path.lstrip("/")


def _text(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(_TEXT_MAX)
    except OSError:
        return ""
