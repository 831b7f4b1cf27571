"""
Mounts in the lab's folder.  Their state is always read from the kernel.
"""

import re
import shutil
from pathlib import Path

from deploy.errors import LabError
from deploy.lab.commands import attempt, run


def mounted_below(directory: Path, mountinfo: str | None = None) -> tuple[Path, ...]:
    """
    Return the mount points at and below *directory*, innermost first.

    Args:
        mountinfo: Text in the format of /proc/self/mountinfo; None reads that file.
    """
    text = mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text()
    points = [Path(_unescape(line.split(" ")[4])) for line in text.splitlines()]
    # A later mount covers an earlier one, also at the same mount point.
    return tuple(point for point in reversed(points) if point.is_relative_to(directory))


def _unescape(text: str) -> str:
    # Source: proc_pid_mountinfo(5): space, tab, newline and backslash are octal escapes.
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def mount_overlay(tag: str, *, layers: list[Path], upper: Path, work: Path, at: Path) -> None:
    """
    Mount an overlay of *layers*, topmost first, at *at*.

    Args:
        tag: Source name of the mount in /proc/self/mountinfo.
        upper: Folder that receives writes.
        work: Empty folder on the filesystem of *upper*, for overlayfs itself.
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


def mount_image(image: Path, *, at: Path) -> None:
    """
    Mount the file system in *image* at *at*; no effect without the file, or where it is mounted.

    Raises:
        LabError: The machine cannot mount it.
    """
    if not image.exists() or at in mounted_below(at):
        return
    at.mkdir(parents=True, exist_ok=True)
    run(
        ["mount", "-o", "loop,noatime", image, at],
        fix=f"rm {image}: the host then shares the file system of the lab's folder",
    )


def unmount_below(directory: Path) -> None:
    """
    Unmount everything at and below *directory*.
    """
    for _ in range(3):
        points = mounted_below(directory)
        for point in points:
            if attempt(["umount", point]).returncode:
                # Busy: a process has a file open. A lazy unmount removes the mount point now.
                attempt(["umount", "--lazy", point])
        if not points:
            return


def remove_tree(directory: Path) -> None:
    """
    Unmount everything in *directory*, then delete it.

    Raises:
        LabError: A mount remains.  Deleting the tree would delete the mounted files.
    """
    unmount_below(directory)
    if mounts := mounted_below(directory):
        raise LabError(
            f"{directory} was not deleted",
            why=f"{mounts[0]} is still mounted",
            fix=f"umount {mounts[0]}, then inv lab.down",
        )
    # Renamed first: a tree under its own name is whole, also after a kill in the middle of this.
    doomed = directory.with_name(f".{directory.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    if directory.exists():
        directory.rename(doomed)
        shutil.rmtree(doomed)


def filesystem_of(directory: Path) -> str:
    """
    Return the type of *directory*'s filesystem; if it does not exist, of its nearest parent's.
    """
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return run(["stat", "--file-system", "--format=%T", existing]).strip()
