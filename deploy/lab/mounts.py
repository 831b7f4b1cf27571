"""
What is mounted in the lab's folder: asked from the kernel, never remembered.
"""

import re
import shutil
from pathlib import Path

from deploy.errors import LabError
from deploy.lab.commands import attempt, run


def mounted_below(directory: Path, mountinfo: str | None = None) -> tuple[Path, ...]:
    """
    Return the mount points at and below *directory*, the innermost first.

    Args:
        mountinfo: Text in the format of /proc/self/mountinfo; None reads that.
    """
    text = mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text()
    points = [Path(_unescape(line.split(" ")[4])) for line in text.splitlines()]
    # The later one covers the earlier, also on the same point.
    return tuple(point for point in reversed(points) if point.is_relative_to(directory))


def _unescape(text: str) -> str:
    # Source: proc_pid_mountinfo(5): space, tab, newline and backslash are octal.
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def mount_overlay(tag: str, *, layers: list[Path], upper: Path, work: Path, at: Path) -> None:
    """
    Mount *layers*, the topmost first, at *at*; what is written goes to *upper*.
    """
    if at in mounted_below(at):
        return
    for path in (upper, work, at):
        path.mkdir(parents=True, exist_ok=True)
    lower = ":".join(str(layer) for layer in layers)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    run(
        ["mount", "-t", "overlay", tag, "-o", options, at],
        fix="set SLIPWAY_LAB_DIR to a folder on ext4, xfs or btrfs",
    )


def unmount_below(directory: Path) -> None:
    """
    Unmount everything at and below *directory*.
    """
    for _ in range(3):
        points = mounted_below(directory)
        for point in points:
            if attempt(["umount", point]).returncode:
                # Busy: some process still has a file open. The mount is gone from here at once.
                attempt(["umount", "--lazy", point])
        if not points:
            return


def remove_tree(directory: Path) -> None:
    """
    Delete *directory*, after unmounting what lies in it.

    Raises:
        LabError: Something is still mounted there, and would be emptied.
    """
    unmount_below(directory)
    if left := mounted_below(directory):
        raise LabError(
            f"{directory} was not deleted",
            why=f"{left[0]} is still mounted",
            fix=f"umount {left[0]}, then inv lab.down",
        )
    if directory.exists():
        shutil.rmtree(directory)


def filesystem_of(directory: Path) -> str:
    """
    Return the type of the filesystem that holds *directory*, or will when it is made.
    """
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return run(["stat", "--file-system", "--format=%T", existing]).strip()
