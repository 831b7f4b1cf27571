"""
One cgroup for each host: freezes it, measures its memory, and lists its remaining processes.

Two layouts.  v1 (and hybrid): this module creates a folder in every hierarchy.  v2: the machine's
systemd gives each supervisor a delegated unit, and nspawn creates its own folders in it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.lab.commands import attempt
from deploy.lab.config import LabConfig

ROOT = Path("/sys/fs/cgroup")
V1_HIERARCHIES = (
    "systemd", "memory", "pids", "freezer", "cpu", "cpuacct", "blkio", "devices", "unified",
)  # fmt: skip
FIRST_WITHOUT_V1 = 258  # version of systemd


class CgroupLayout(Protocol):
    def supervisor_prefix(self, config: LabConfig, host: str, *, folder: Path) -> list[str]:
        """
        Return the argv prefix that starts *host*'s supervisor in *folder*; empty: none is needed.
        """

    def enter(self, config: LabConfig, host: str) -> None:
        """
        Move the calling process, *host*'s supervisor, into the host's cgroup.
        """

    def boot_prefix(self, config: LabConfig, host: str) -> list[str]:
        """
        Create the cgroup for one boot of *host*; return the argv prefix that starts nspawn in it.
        """

    def nspawn_variables(self, systemd: int) -> dict[str, str]:
        """
        Return environment variables of nspawn for a host with version *systemd* of systemd. Pure.
        """

    def set_frozen(self, config: LabConfig, host: str, frozen: bool) -> None: ...

    def is_frozen(self, config: LabConfig, host: str) -> bool: ...

    def memory_bytes(self, config: LabConfig, host: str) -> int: ...

    def folders(self, config: LabConfig) -> tuple[Path, ...]:
        """
        Return the top-level cgroups of the lab.
        """


def detect(root: Path = ROOT) -> CgroupLayout | None:
    """
    Return the layout of this machine; None if the lab cannot create cgroups for hosts.
    """
    if all((root / name / "cgroup.procs").exists() for name in ("memory", "pids", "freezer")):
        # `cpu` and `cpuacct` may be two names of one hierarchy.
        candidates = (root / name for name in V1_HIERARCHIES)
        hierarchies = dict.fromkeys(path.resolve() for path in candidates if path.is_dir())
        return CgroupV1(tuple(hierarchies), root / "freezer", root / "memory")
    controllers = root / "cgroup.controllers"
    if controllers.exists() and {"memory", "pids"} <= set(controllers.read_text().split()):
        return CgroupV2(root) if Path("/run/systemd/system").is_dir() else None
    return None


@dataclass(frozen=True, slots=True)
class CgroupV1:
    hierarchies: tuple[Path, ...]
    freezer: Path
    memory: Path

    def supervisor_prefix(self, config: LabConfig, host: str, *, folder: Path) -> list[str]:
        return []

    def enter(self, config: LabConfig, host: str) -> None:
        # In a hierarchy without a folder of its own, a host shares /payload with all others.
        for hierarchy in self.hierarchies:
            folder = hierarchy / config.tag / host
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def boot_prefix(self, config: LabConfig, host: str) -> list[str]:
        return []  # a child starts in the cgroup of its parent

    def nspawn_variables(self, systemd: int) -> dict[str, str]:
        # Systemd 258 and later boot with v2 alone.  The host then sees only the v2 hierarchy, which
        # has no controllers here: its limits have no effect.
        return {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"} if systemd >= FIRST_WITHOUT_V1 else {}

    def set_frozen(self, config: LabConfig, host: str, frozen: bool) -> None:
        state = self.freezer / config.tag / host / "freezer.state"
        if state.exists():
            state.write_text("FROZEN" if frozen else "THAWED")

    def is_frozen(self, config: LabConfig, host: str) -> bool:
        # FREEZING counts as frozen: no new process starts.
        state = self.freezer / config.tag / host / "freezer.state"
        return state.exists() and state.read_text().strip() != "THAWED"

    def memory_bytes(self, config: LabConfig, host: str) -> int:
        folder = self.memory / config.tag / host
        if not folder.exists():
            return 0
        usage = int((folder / "memory.usage_in_bytes").read_text())
        return max(0, usage - _stat_value(folder / "memory.stat", "total_inactive_file"))

    def folders(self, config: LabConfig) -> tuple[Path, ...]:
        return tuple(h / config.tag for h in self.hierarchies if (h / config.tag).exists())


@dataclass(frozen=True, slots=True)
class CgroupV2:
    root: Path

    def _folder(self, config: LabConfig, host: str) -> Path:
        return self.root / "system.slice" / config.unit(host)

    def supervisor_prefix(self, config: LabConfig, host: str, *, folder: Path) -> list[str]:
        argv = ["systemd-run", "--quiet", "--collect", f"--unit={config.unit(host)}"]
        argv += ["--property=Delegate=yes", "--property=TasksMax=infinity"]
        return [*argv, "--property=OOMPolicy=continue", f"--working-directory={folder}", "--"]

    def enter(self, config: LabConfig, host: str) -> None:
        # A v2 cgroup delegates its controllers only while it holds no process itself, so the
        # supervisor and nspawn each get a child cgroup. If they shared one, limits would have
        # no effect.
        unit = self._folder(config, host)
        (unit / "supervisor").mkdir(exist_ok=True)
        (unit / "supervisor/cgroup.procs").write_text(str(os.getpid()))
        controllers = (unit / "cgroup.controllers").read_text().split()
        (unit / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))

    def boot_prefix(self, config: LabConfig, host: str) -> list[str]:
        # A new cgroup for each boot: that of the last boot delegates its controllers and
        # therefore accepts no process.
        boot = self._folder(config, host) / "boot"
        _remove_tree(boot)
        boot.mkdir(exist_ok=True)
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(boot / "cgroup.procs")]

    def nspawn_variables(self, systemd: int) -> dict[str, str]:
        return {}

    def set_frozen(self, config: LabConfig, host: str, frozen: bool) -> None:
        freeze = self._folder(config, host) / "cgroup.freeze"
        if freeze.exists():
            freeze.write_text("1" if frozen else "0")

    def is_frozen(self, config: LabConfig, host: str) -> bool:
        freeze = self._folder(config, host) / "cgroup.freeze"
        return freeze.exists() and freeze.read_text().strip() == "1"

    def memory_bytes(self, config: LabConfig, host: str) -> int:
        folder = self._folder(config, host)
        if not folder.exists():
            return 0
        usage = int((folder / "memory.current").read_text())
        return max(0, usage - _stat_value(folder / "memory.stat", "inactive_file"))

    def folders(self, config: LabConfig) -> tuple[Path, ...]:
        return tuple((self.root / "system.slice").glob(f"{config.tag}-n*.service"))


def process_ids(folders: tuple[Path, ...]) -> frozenset[int]:
    """
    Return the ids of all processes in *folders* and below.
    """
    pids: set[int] = set()
    for folder in folders:
        for procs in folder.rglob("cgroup.procs"):
            try:
                pids.update(int(pid) for pid in procs.read_text().split())
            except OSError:
                continue  # the cgroup was removed, or became threaded, after it was listed
    return frozenset(pids)


def remove(config: LabConfig, layout: CgroupLayout, *, timeout_s: float = 5.0) -> None:
    """
    Remove the lab's cgroups.

    Retries for up to *timeout_s*: a cgroup stays busy until the kernel has reaped killed processes.
    """
    deadline_s = time.monotonic() + timeout_s
    while (folders := layout.folders(config)) and time.monotonic() < deadline_s:
        for folder in folders:
            _remove_tree(folder)
        if layout.folders(config):
            time.sleep(0.05)


def _remove_tree(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            Path(path).rmdir()
        except OSError:
            continue  # it still holds a process


def reset_units(config: LabConfig) -> None:
    """
    Stop the units of killed hosts in this machine's systemd, and reset their failed state.
    """
    if Path("/run/systemd/system").is_dir():
        attempt(["systemctl", "stop", f"{config.tag}-n*.service"])
        attempt(["systemctl", "reset-failed", f"{config.tag}-n*.service"])


def _stat_value(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
