"""
Checks whether the lab can run on this machine.

`read_machine` reads the facts, `unmet_requirement` decides, `check` does both.
"""

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import LabError
from deploy.lab import cgroups
from deploy.lab.commands import attempt, environment, run
from deploy.lab.config import LabConfig
from deploy.lab.mounts import filesystem_of
from deploy.lab.suites import distribution
from deploy.units import format_size

PACKAGE_OF = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "nsenter": "util-linux",
}
# The base tree takes 0.3 GiB, each provisioned host 1 to 1.5 GiB.
MIN_FREE_BYTES = 3 * 2**30
# Filesystems that cannot hold the writable layer of an overlay; names as stat(1) prints them.
UNSUPPORTED_FILESYSTEMS = frozenset(
    {"overlayfs", "nfs", "smb2", "fuseblk", "fuse", "ecryptfs", "v9fs"}
)


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """
    Facts about this machine that decide whether the lab can run on it.

    Attributes:
        namespaces_error: Error of unshare(1); None if it could create all namespaces.
        cgroup_layout: None if the lab cannot create cgroups.
        filesystem: Type of the filesystem of the lab's folder, as stat(1) prints it.
        free_bytes: Free space on that filesystem.
        missing_packages: Debian packages of commands and files that the lab needs.
    """

    system: str
    is_root: bool
    has_apt: bool
    namespaces_error: str | None
    has_overlayfs: bool
    cgroup_layout: cgroups.CgroupLayout | None
    filesystem: str
    free_bytes: int
    missing_packages: tuple[str, ...]


def check(config: LabConfig) -> MachineFacts:
    """
    Return the facts about this machine.  Packages may be missing: `install` adds them.

    Raises:
        LabError: The machine fails a requirement that no package can meet; the error names it.
    """
    machine = read_machine(config)
    if error := unmet_requirement(machine, config):
        raise error
    return machine


def read_machine(config: LabConfig) -> MachineFacts:
    """
    Read the facts about this machine.  May load the kernel's overlay module; changes nothing else.
    """
    system, is_root = platform.system(), os.geteuid() == 0
    if system != "Linux" or not is_root:
        # The other facts cannot be read then, and one of these two already fails the check.
        return MachineFacts(system, is_root, False, None, False, None, "", 0, ())
    path = environment()["PATH"]
    existing = next(p for p in (config.directory, *config.directory.parents) if p.exists())
    missing_packages = {
        package for command, package in PACKAGE_OF.items() if not shutil.which(command, path=path)
    }
    archive = distribution(config.suite)
    if not archive.keyring.exists():
        missing_packages.add(archive.keyring_package)
    return MachineFacts(
        system=system,
        is_root=is_root,
        has_apt=all(shutil.which(command, path=path) for command in ("apt-get", "dpkg")),
        namespaces_error=_namespaces_error(),
        has_overlayfs=_has_overlayfs(),
        cgroup_layout=cgroups.detect(),
        filesystem=filesystem_of(existing),
        free_bytes=shutil.disk_usage(existing).free,
        missing_packages=tuple(sorted(missing_packages)),
    )


def unmet_requirement(machine: MachineFacts, config: LabConfig) -> LabError | None:
    """
    Return an error for the first requirement that *machine* fails; None if it meets all. Pure.
    """
    if machine.system != "Linux":
        return LabError(
            "the lab needs Linux",
            why=f"this machine runs {machine.system}",
            fix="run the lab in a virtual machine with Debian 12 or Ubuntu",
        )
    if not machine.is_root:
        return root_required()
    if not machine.has_apt:
        return LabError(
            "the lab needs Debian or a distribution derived from it",
            why="apt-get or dpkg is not installed on this machine",
            fix="run the lab on Debian 12 or Ubuntu, or in a virtual machine with one of them",
        )
    if machine.namespaces_error is not None:
        return LabError(
            "the lab needs to create namespaces: net, pid, mount, uts and ipc",
            why=machine.namespaces_error,
            fix="use a machine or a privileged container where `unshare -npmui --fork true` works",
        )
    if not machine.has_overlayfs:
        return LabError(
            "the lab needs overlayfs",
            why="/proc/filesystems does not list overlay, and modprobe could not load it",
            fix="install the distribution's standard kernel, which has the overlay module",
        )
    if machine.cgroup_layout is None:
        return cgroups_required()
    if machine.filesystem in UNSUPPORTED_FILESYSTEMS:
        return LabError(
            f"the lab cannot keep its disks in {config.directory}",
            why=f"overlayfs cannot write to the filesystem there, {machine.filesystem}",
            fix="set SLIPWAY_LAB_DIR to a folder on ext4, xfs or btrfs",
        )
    if machine.free_bytes < MIN_FREE_BYTES:
        free, needed = format_size(machine.free_bytes), format_size(MIN_FREE_BYTES)
        return LabError(
            f"too little disk space for the lab in {config.directory}",
            why=f"{free} are free, {needed} are needed",
            fix="free disk space, or set SLIPWAY_LAB_DIR to a folder on another disk",
        )
    return None


def install(packages: tuple[str, ...], progress: Callable[[str], None]) -> None:
    """
    Install *packages* on this machine with apt.

    Raises:
        LabError: apt failed; has the last line of its error output.
    """
    names = " ".join(packages)
    progress(f"installing packages that the lab needs on this machine: {names}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    fix = f"apt-get install {names}, then inv lab.up"
    run(["apt-get", "update"], timeout_s=300, env=env, fix=fix)
    argv = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    run(argv, timeout_s=600, env=env, fix=fix)


def root_required() -> LabError:
    """
    Return the error of every lab command that an ordinary user runs.
    """
    return LabError(
        "the lab needs root",
        why="this user is not root and may not create mounts, network links and cgroups",
        fix="run the same command as root, for example with: sudo -E",
    )


def cgroups_required() -> LabError:
    """
    Return the error of a machine on which `cgroups.detect` returns None.
    """
    return LabError(
        "the lab needs cgroups with the controllers memory, pids and freezer",
        why="/sys/fs/cgroup has neither these v1 hierarchies nor a v2 tree managed by systemd",
        fix="run the lab on a machine with systemd as init",
    )


def os_release() -> Mapping[str, str]:
    """
    Return the keys of /etc/os-release.
    """
    return platform.freedesktop_os_release()


def _namespaces_error() -> str | None:
    result = attempt(["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "true"])
    return result.error_line if result.returncode else None


def _has_overlayfs() -> bool:
    filesystems = Path("/proc/filesystems")
    if "\toverlay\n" not in filesystems.read_text() and shutil.which("modprobe"):
        attempt(["modprobe", "overlay"])
    return "\toverlay\n" in filesystems.read_text()
