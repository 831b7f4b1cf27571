"""
Processes of the lab, always read from /proc.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.config import LabConfig

SUPERVISOR = "deploy.lab.supervisor"


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    argv: tuple[str, ...]


def all_processes(proc: Path = Path("/proc")) -> Iterator[Process]:
    """
    Yield the running processes, without kernel threads and zombies.
    """
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            # The name is in parentheses and may contain any character.  The parent is the second
            # field after it.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # the process has ended since it was listed
        if argv:
            yield Process(int(folder.name), parent, tuple(argv.split("\0")))


def supervisor_argv(config: LabConfig, host: str) -> list[str]:
    """
    Return python's arguments for *host*'s supervisor; `supervisors` finds it by them.
    """
    return ["-m", SUPERVISOR, *_identity(config), host]


def _identity(config: LabConfig) -> list[str]:
    return [str(config.directory), str(config.bases), config.bridge, config.prefix]


def supervisors(config: LabConfig, running: Iterable[Process]) -> dict[str, int]:
    """
    Return {host: process id} of this lab's supervisors.
    """
    start = ["-m", SUPERVISOR, *_identity(config)]
    return {p.argv[-1]: p.pid for p in running if list(p.argv[-len(start) - 1 : -1]) == start}


def containers(config: LabConfig, running: Iterable[Process]) -> dict[str, int]:
    """
    Return {host: process id} of this lab's systemd-nspawn processes.
    """
    candidates = {p.pid: p for p in running if p.argv[0] in {"systemd-nspawn", "setpriv"}}
    pid_by_host = {}
    for process in candidates.values():
        host = _host_of(config, process.argv)
        # nspawn's child has the same arguments until it executes the host's init.
        if host is not None and process.parent not in candidates:
            pid_by_host[host] = process.pid
    return pid_by_host


def _host_of(config: LabConfig, argv: tuple[str, ...]) -> str | None:
    for word in argv:
        root = Path(word.removeprefix("--directory="))
        if word.startswith("--directory=") and root.parent.parent == config.hosts:
            return root.parent.name
    return None


def leader_of(container: int, running: Iterable[Process], proc: Path = Path("/proc")) -> int | None:
    """
    Return the process id, on this machine, of the init of nspawn process *container*.

    None if nspawn has not started it yet.
    """
    for process in running:
        if process.parent != container:
            continue
        with contextlib.suppress(OSError):
            for line in (proc / str(process.pid) / "status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == "1":
                    return process.pid
    return None


def using_tree(tree: Path, running: Iterable[Process]) -> frozenset[int]:
    """
    Return the ids of processes that run in a chroot in *tree*, or have it in their arguments.

    These are the children that a killed debootstrap leaves.
    """
    pids = set()
    for process in running:
        if any(str(tree) in word for word in process.argv):
            pids.add(process.pid)
        with contextlib.suppress(OSError):
            root = Path(f"/proc/{process.pid}/root").readlink()
            if root.is_relative_to(tree):
                pids.add(process.pid)
    return frozenset(pids)


def kill_all(pids: Iterable[int], *, timeout_s: float = 5.0) -> frozenset[int]:
    """
    Send SIGKILL to *pids* and wait until they have ended; return those that have not.
    """
    targets = set(pids) - {os.getpid()}
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return wait_for_end(targets, timeout_s=timeout_s)


def wait_for_end(pids: Iterable[int], *, timeout_s: float) -> frozenset[int]:
    """
    Wait until *pids* have ended; return those that have not after *timeout_s*.
    """
    deadline_s = time.monotonic() + timeout_s
    alive = {pid for pid in pids if is_alive(pid)}
    while alive and time.monotonic() < deadline_s:
        time.sleep(0.02)
        alive = {pid for pid in alive if is_alive(pid)}
    return frozenset(alive)


def is_alive(pid: int) -> bool:
    """
    Return True if process *pid* exists and is not a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
