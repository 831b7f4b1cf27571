"""
Can the lab run on this machine, and if not, which condition is missing?

`survey` asks the machine, `first_objection` decides, `check` joins them.
"""

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import LabError
from deploy.lab import cgroups
from deploy.lab.base import KEYRING
from deploy.lab.commands import attempt, environment, run
from deploy.lab.config import LabConfig
from deploy.lab.mounts import filesystem_of
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
# The base takes 0.3 GiB, and each provisioned host about one.
MIN_FREE_BYTES = 3 * 2**30
# As stat(1) calls those on which overlayfs can't write, or not reliably.
UNFIT_FILESYSTEMS = frozenset({"overlayfs", "nfs", "smb2", "fuseblk", "fuse", "ecryptfs", "v9fs"})


@dataclass(frozen=True, slots=True)
class Machine:
    """
    Attributes:
        namespaces_refusal: What unshare(1) said; None: it could make all of them.
        lacking: Packages of the commands that are not there.
        filesystem: Type of the one that the lab's folder is on.
    """

    system: str
    is_root: bool
    has_apt: bool
    namespaces_refusal: str | None
    has_overlayfs: bool
    cgroup_layout: cgroups.Layout | None
    filesystem: str
    free_bytes: int
    lacking: tuple[str, ...]


def check(config: LabConfig) -> Machine:
    """
    Return what this machine is like; packages may be `lacking`.

    Raises:
        LabError: A condition is missing that no package brings; names it.
    """
    machine = survey(config)
    if objection := first_objection(machine, config):
        raise objection
    return machine


def survey(config: LabConfig) -> Machine:
    """
    Ask this machine; changes nothing but for loading the kernel's overlay module.
    """
    system, is_root = platform.system(), os.geteuid() == 0
    if system != "Linux" or not is_root:
        # The rest can't be asked, and would not matter.
        return Machine(system, is_root, False, None, False, None, "", 0, ())
    path = environment()["PATH"]
    existing = next(p for p in (config.directory, *config.directory.parents) if p.exists())
    lacking = {
        package for command, package in PACKAGE_OF.items() if not shutil.which(command, path=path)
    }
    if not KEYRING.exists():
        lacking.add("debian-archive-keyring")
    return Machine(
        system=system,
        is_root=is_root,
        has_apt=all(shutil.which(command, path=path) for command in ("apt-get", "dpkg")),
        namespaces_refusal=_namespaces_refusal(),
        has_overlayfs=_has_overlayfs(),
        cgroup_layout=cgroups.detect(),
        filesystem=filesystem_of(existing),
        free_bytes=shutil.disk_usage(existing).free,
        lacking=tuple(sorted(lacking)),
    )


def first_objection(machine: Machine, config: LabConfig) -> LabError | None:
    """
    Return why the lab can't run on *machine*; None if it can. Pure.
    """
    if machine.system != "Linux":
        return LabError(
            "the lab needs Linux",
            why=f"this machine runs {machine.system}",
            fix="run it in a virtual machine with Debian 12 or Ubuntu",
        )
    if not machine.is_root:
        return needs_root()
    if not machine.has_apt:
        return LabError(
            "the lab needs a Debian-like machine",
            why="apt-get and dpkg are not installed here",
            fix="run it on Debian 12 or Ubuntu, or in a virtual machine with one of them",
        )
    if machine.namespaces_refusal is not None:
        return LabError(
            "the lab needs namespaces of its own: net, pid, mount, uts and ipc",
            why=machine.namespaces_refusal,
            fix="use a machine or a privileged container where `unshare -npmui --fork true` works",
        )
    if not machine.has_overlayfs:
        return LabError(
            "the lab needs overlayfs",
            why="the kernel does not list it in /proc/filesystems, and modprobe overlay failed",
            fix="install the distribution's usual kernel, or: modprobe overlay",
        )
    if machine.cgroup_layout is None:
        return LabError(
            "the lab needs cgroups with memory, pids and a freezer",
            why="neither v1 hierarchies nor a v2 tree with systemd were found in /sys/fs/cgroup",
            fix="run it on a machine that was booted by systemd",
        )
    if machine.filesystem in UNFIT_FILESYSTEMS:
        return LabError(
            f"the lab's disks can't lie in {config.directory}",
            why=f"overlayfs does not write on {machine.filesystem}",
            fix="set SLIPWAY_LAB_DIR to a folder on ext4, xfs or btrfs",
        )
    if machine.free_bytes < MIN_FREE_BYTES:
        free, needed = format_size(machine.free_bytes), format_size(MIN_FREE_BYTES)
        return LabError(
            f"the lab's disk is too full: {config.directory}",
            why=f"{free} are free; it needs {needed}",
            fix="make room, or set SLIPWAY_LAB_DIR to a folder on another disk",
        )
    return None


def install(packages: tuple[str, ...], progress: Callable[[str], None]) -> None:
    """
    Install *packages* on this machine, with its own apt.

    Raises:
        LabError: apt did not; says what.
    """
    names = " ".join(packages)
    progress(f"installing what the lab needs on this machine: {names}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    fix = f"install by hand: apt-get install {names}"
    run(["apt-get", "update"], timeout_s=300, env=env, fix=fix)
    argv = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    run(argv, timeout_s=600, env=env, fix=fix)


def needs_root() -> LabError:
    """
    Return what every command on the lab says to a plain user.
    """
    return LabError(
        "the lab needs root",
        why="mounts, network links and cgroups of other systems are the kernel's to give",
        fix="run the same command as root, for example with: sudo -E",
    )


def os_release() -> Mapping[str, str]:
    """
    Return the keys of /etc/os-release.
    """
    return platform.freedesktop_os_release()


def _namespaces_refusal() -> str | None:
    ran = attempt(["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "true"])
    return ran.complaint if ran.returncode else None


def _has_overlayfs() -> bool:
    filesystems = Path("/proc/filesystems")
    if "\toverlay\n" not in filesystems.read_text() and shutil.which("modprobe"):
        attempt(["modprobe", "overlay"])
    return "\toverlay\n" in filesystems.read_text()
