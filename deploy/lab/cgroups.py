"""
Each host's own cgroup: what freezes it, weighs it, and lists what is left of it.

Two layouts. V1 (also hybrid): a folder in every hierarchy, made here. V2: the machine's systemd
gives each supervisor a delegated unit, and nspawn makes its own folders in that.
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


class Layout(Protocol):
    def launcher(self, config: LabConfig, host: str, *, folder: Path) -> list[str]:
        """
        Return what starts *host*'s supervisor in *folder*; empty: nothing special.
        """

    def enter(self, config: LabConfig, host: str) -> None:
        """
        Move this process, *host*'s supervisor, into the host's cgroup.
        """

    def placer(self, config: LabConfig, host: str) -> list[str]:
        """
        Make place for one boot of *host*; return what starts nspawn there.
        """

    def set_frozen(self, config: LabConfig, host: str, frozen: bool) -> None: ...

    def is_frozen(self, config: LabConfig, host: str) -> bool: ...

    def memory_bytes(self, config: LabConfig, host: str) -> int: ...

    def folders(self, config: LabConfig) -> tuple[Path, ...]:
        """
        Return the lab's topmost cgroups.
        """


def detect(root: Path = ROOT) -> Layout | None:
    """
    Return the layout of this machine; None if hosts can't have a cgroup of their own.
    """
    if all((root / name / "cgroup.procs").exists() for name in ("memory", "pids", "freezer")):
        # `cpu` and `cpuacct` may be two names of one hierarchy.
        found = (root / name for name in V1_HIERARCHIES)
        hierarchies = dict.fromkeys(path.resolve() for path in found if path.is_dir())
        return V1(tuple(hierarchies), root / "freezer", root / "memory")
    controllers = root / "cgroup.controllers"
    if controllers.exists() and {"memory", "pids"} <= set(controllers.read_text().split()):
        return V2(root) if Path("/run/systemd/system").is_dir() else None
    return None


@dataclass(frozen=True, slots=True)
class V1:
    hierarchies: tuple[Path, ...]
    freezer: Path
    memory: Path

    def launcher(self, config: LabConfig, host: str, *, folder: Path) -> list[str]:
        return []

    def enter(self, config: LabConfig, host: str) -> None:
        # Without a folder in each, all hosts share one that is called /payload.
        for hierarchy in self.hierarchies:
            folder = hierarchy / config.tag / host
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def placer(self, config: LabConfig, host: str) -> list[str]:
        return []  # a child is where its parent is

    def set_frozen(self, config: LabConfig, host: str, frozen: bool) -> None:
        state = self.freezer / config.tag / host / "freezer.state"
        if state.exists():
            state.write_text("FROZEN" if frozen else "THAWED")

    def is_frozen(self, config: LabConfig, host: str) -> bool:
        # FREEZING is frozen too: nothing new is started.
        state = self.freezer / config.tag / host / "freezer.state"
        return state.exists() and state.read_text().strip() != "THAWED"

    def memory_bytes(self, config: LabConfig, host: str) -> int:
        folder = self.memory / config.tag / host
        if not folder.exists():
            return 0
        usage = int((folder / "memory.usage_in_bytes").read_text())
        return max(0, usage - _stat(folder / "memory.stat", "total_inactive_file"))

    def folders(self, config: LabConfig) -> tuple[Path, ...]:
        return tuple(h / config.tag for h in self.hierarchies if (h / config.tag).exists())


@dataclass(frozen=True, slots=True)
class V2:
    root: Path

    def _folder(self, config: LabConfig, host: str) -> Path:
        return self.root / "system.slice" / config.unit(host)

    def launcher(self, config: LabConfig, host: str, *, folder: Path) -> list[str]:
        argv = ["systemd-run", "--quiet", "--collect", f"--unit={config.unit(host)}"]
        argv += ["--property=Delegate=yes", "--property=TasksMax=infinity"]
        return [*argv, "--property=OOMPolicy=continue", f"--working-directory={folder}", "--"]

    def enter(self, config: LabConfig, host: str) -> None:
        # A v2 cgroup hands its controllers on only while no process is in itself, so the
        # supervisor and nspawn get one each below. With one for both, limits do nothing.
        unit = self._folder(config, host)
        (unit / "keeper").mkdir(exist_ok=True)
        (unit / "keeper/cgroup.procs").write_text(str(os.getpid()))
        controllers = (unit / "cgroup.controllers").read_text().split()
        (unit / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))

    def placer(self, config: LabConfig, host: str) -> list[str]:
        # A new one for each boot: the last one's hands controllers on and takes no process.
        boot = self._folder(config, host) / "boot"
        _remove_tree(boot)
        boot.mkdir(exist_ok=True)
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(boot / "cgroup.procs")]

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
        return max(0, usage - _stat(folder / "memory.stat", "inactive_file"))

    def folders(self, config: LabConfig) -> tuple[Path, ...]:
        return tuple((self.root / "system.slice").glob(f"{config.tag}-n*.service"))


def processes(folders: tuple[Path, ...]) -> frozenset[int]:
    """
    Return every process in *folders* and below.
    """
    pids: set[int] = set()
    for folder in folders:
        for procs in folder.rglob("cgroup.procs"):
            try:
                pids.update(int(pid) for pid in procs.read_text().split())
            except OSError:
                continue  # the folder, or its type, went away meanwhile
    return frozenset(pids)


def remove(config: LabConfig, layout: Layout, *, timeout_s: float = 5.0) -> None:
    """
    Remove the lab's cgroups; processes that were just killed may keep them for a moment.
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
            continue  # a process is still in it


def reset_units(config: LabConfig) -> None:
    """
    Make the machine's systemd forget units of hosts that were killed.
    """
    if Path("/run/systemd/system").is_dir():
        attempt(["systemctl", "stop", f"{config.tag}-n*.service"])
        attempt(["systemctl", "reset-failed", f"{config.tag}-n*.service"])


def _stat(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
