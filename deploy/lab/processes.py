"""
The lab's processes: asked from /proc, never remembered.
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
    Yield what runs now, kernel threads and zombies left out.
    """
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            # The name, in parentheses, may hold any character; the parent is the second after it.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
        if argv:
            yield Process(int(folder.name), parent, tuple(argv.split("\0")))


def supervisor_argv(config: LabConfig, host: str) -> list[str]:
    """
    Return the arguments of python for *host*'s supervisor; `supervisors` finds it by them.
    """
    return ["-m", SUPERVISOR, *_identity(config), host]


def _identity(config: LabConfig) -> list[str]:
    return [str(config.directory), str(config.bases), config.bridge, config.prefix]


def supervisors(config: LabConfig, running: Iterable[Process]) -> dict[str, int]:
    """
    Return host → process id of the supervisors of this lab.
    """
    start = ["-m", SUPERVISOR, *_identity(config)]
    return {p.argv[-1]: p.pid for p in running if list(p.argv[-len(start) - 1 : -1]) == start}


def containers(config: LabConfig, running: Iterable[Process]) -> dict[str, int]:
    """
    Return host → process id of its systemd-nspawn.
    """
    matches = {p.pid: p for p in running if p.argv[0] in {"systemd-nspawn", "setpriv"}}
    found = {}
    for process in matches.values():
        host = _host_of(config, process.argv)
        # A child that has not yet become the host's init still bears nspawn's arguments.
        if host is not None and process.parent not in matches:
            found[host] = process.pid
    return found


def _host_of(config: LabConfig, argv: tuple[str, ...]) -> str | None:
    for word in argv:
        root = Path(word.removeprefix("--directory="))
        if word.startswith("--directory=") and root.parent.parent == config.hosts:
            return root.parent.name
    return None


def leader_of(container: int, running: Iterable[Process], proc: Path = Path("/proc")) -> int | None:
    """
    Return the process id, on this machine, of the init that nspawn process *container* started.
    """
    for process in running:
        if process.parent != container:
            continue
        with contextlib.suppress(OSError):
            for line in (proc / str(process.pid) / "status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == "1":
                    return process.pid
    return None


def working_in(tree: Path, running: Iterable[Process]) -> frozenset[int]:
    """
    Return what runs in a chroot at *tree* or names it: what a killed debootstrap had started.
    """
    found = set()
    for process in running:
        if any(str(tree) in word for word in process.argv):
            found.add(process.pid)
        with contextlib.suppress(OSError):
            root = Path(f"/proc/{process.pid}/root").readlink()
            if root.is_relative_to(tree):
                found.add(process.pid)
    return frozenset(found)


def kill_all(pids: Iterable[int], *, timeout_s: float = 5.0) -> frozenset[int]:
    """
    Send SIGKILL to *pids* and wait until they are gone; return those that stayed.
    """
    left = set(pids) - {os.getpid()}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return wait_for_end(left, timeout_s=timeout_s)


def wait_for_end(pids: Iterable[int], *, timeout_s: float) -> frozenset[int]:
    """
    Wait until *pids* are gone; return those that stayed.
    """
    deadline_s = time.monotonic() + timeout_s
    left = {pid for pid in pids if is_alive(pid)}
    while left and time.monotonic() < deadline_s:
        time.sleep(0.02)
        left = {pid for pid in left if is_alive(pid)}
    return frozenset(left)


def is_alive(pid: int) -> bool:
    """
    Is there such a process, and not just its exit status?
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
