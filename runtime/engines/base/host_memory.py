"""
Reads how much memory of this host a runtime may use: what is available, and its cgroup's limits.

A unit's `MemoryMax=` counts all its processes: API, engine, chat templates, grammars.

The limits of a unit are of one slot.  What is above them is shared by two: during a release each of
them computes, and the cache that one has planned is not in use yet when the other one starts.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SLOTS = 2
SHARED = "shared by two slots"
AVAILABLE = f"MemAvailable of the host, {SHARED}"  # a limit that passes, unlike those of cgroups
_KIB = 1024


@dataclass(frozen=True, slots=True)
class HostMemory:
    """
    Attributes:
        total_bytes: What a runtime's processes may use together, with what they use already.
        limit: What sets it, for messages.
    """

    total_bytes: int
    limit: str


@dataclass(frozen=True, slots=True)
class _Limit:
    """
    Attributes:
        left_bytes: What it leaves to this runtime, with what it uses already.
        is_shared: Whether it leaves that to the other slot too.
    """

    left_bytes: int
    name: str
    is_shared: bool

    def share(self, beside: int) -> HostMemory:
        """
        Args:
            beside: Bytes that the other slot uses: of its own share.
        """
        if not self.is_shared:
            return HostMemory(self.left_bytes, self.name)
        share = (self.left_bytes + beside) // SLOTS
        return HostMemory(min(self.left_bytes, share), self.name)


@dataclass(frozen=True, slots=True)
class _Files:
    """
    The files of one cgroup version.

    Attributes:
        limits: Names of files with a limit; a word in place of a number is no limit.
        cached: Keys of memory.stat, hierarchical: the kernel drops these pages before it kills.
    """

    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, ...]


V2 = _Files(
    ("memory.max", "memory.high"),
    "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
)
V1 = _Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def read_host_memory(pid: int, root: Path = Path("/")) -> HostMemory | None:
    """
    Return what the process *pid* and its descendants may use together.

    That is the least of what its own cgroup leaves, and of half of what the host has available and
    of what each cgroup above leaves.  What they use already is theirs, so the answer does not
    change while they load.  None if the kernel says neither.

    Args:
        pid: Of the runtime's first process.
    """
    own = _used_by_tree(pid, root)
    found, beside = [], 0
    available = _numbers(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        found.append(_Limit(available * _KIB + own, AVAILABLE, is_shared=True))
    for folders, files in _cgroups(root):
        others = [max(_used(folder, files) - own, 0) for folder in folders]
        if len(folders) > 1 and "@" in folders[0].name and folders[1].suffix == ".slice":
            beside = max(beside, others[1])  # the slice of the units of both slots
        for folder, used in zip(folders, others, strict=True):
            is_shared = folder != folders[0]
            for name in files.limits:
                if (limit := _number(folder / name)) is not None:
                    path = f"/{folder.relative_to(root)}/{name}"
                    words = f"{path}, {SHARED}" if is_shared else path
                    found.append(_Limit(max(limit - used, 0), words, is_shared))
    shares = [limit.share(beside) for limit in found]
    return min(shares, key=lambda memory: memory.total_bytes, default=None)


def _used(folder: Path, files: _Files) -> int:
    """
    Return the bytes that the processes of a cgroup use, without cached files.
    """
    stat = _numbers(folder / "memory.stat")
    return (_number(folder / files.usage) or 0) - sum(stat.get(key, 0) for key in files.cached)


def _used_by_tree(pid: int, root: Path) -> int:
    """
    Return the bytes of memory of *pid* and its descendants that no file backs.
    """
    children: dict[int, list[int]] = {}
    for path in (root / "proc").glob("[0-9]*/stat"):
        # The name before the last ")" may have any character.
        fields = _text(path).rpartition(")")[2].split()
        if len(fields) > 1 and fields[1].isdigit():
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    used, waiting = 0, [pid]
    while waiting:
        current = waiting.pop()
        waiting += children.pop(current, [])
        status = _numbers(root / f"proc/{current}/status")
        used += (status.get("RssAnon:", 0) + status.get("RssShmem:", 0)) * _KIB
    return used


def _cgroups(root: Path) -> Iterator[tuple[list[Path], _Files]]:
    """
    Yield the directories of this process's memory cgroups, the innermost first, of each version.
    """
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in _text(root / "proc/self/mountinfo").splitlines():
        # Source: proc_pid_mountinfo(5): ID, parent, device, root, mount point, options, optional
        # fields, "-", type, source, options of the super block.
        mounted, _, system = line.partition(" - ")
        fields, kind = mounted.split(), system.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in paths:
            continue
        if kind[0] == "cgroup" and "memory" not in kind[2].split(","):
            continue
        top = root / _unescape(fields[4]).lstrip("/")
        folder = top / _below(paths[kind[0]], _unescape(fields[3]))
        files = V2 if kind[0] == "cgroup2" else V1
        above = [each for each in folder.parents if each.is_relative_to(top)]
        yield [folder, *above], files


def _below(path: str, mounted: str) -> PurePosixPath:
    """
    Return *path* of a cgroup below the cgroup that is *mounted*; the latter if it is not below.
    """
    own = PurePosixPath(path)
    with contextlib.suppress(ValueError):
        if ".." not in own.parts:  # outside of the cgroup namespace of this process
            return own.relative_to(mounted)
    return PurePosixPath()


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _numbers(path: Path) -> dict[str, int]:
    """
    Return the numbers of a file with a name and a number on each line.
    """
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """
    Return the text of a file of the kernel; empty if it is not there, or not for this user.
    """
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
