"""
The mark of an environment whose torch has not computed on all GPUs: a file in it.

An empty mark is due.  One with the id of a boot was tried in that boot, and names the GPUs that had
no free memory then; or it says that a result differed, and is due.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from deploy.host.tree import UNCOMPARED
from deploy.host.trusted_files import read_below

DIFFERED = "differed"
_MAX = 4096  # bytes


class TorchMark(NamedTuple):
    """
    Attributes:
        is_due: Nothing was compared in this boot, or a result differed.
        full_gpus: Numbers of the GPUs that had no free memory in this boot.
        has_differed: A result differed in this boot, before the slots started.
    """

    is_due: bool
    full_gpus: tuple[int, ...] = ()
    has_differed: bool = False


def mark_text(boot_id: str, full_gpus: tuple[int, ...]) -> bytes:
    return " ".join([boot_id, *map(str, full_gpus)]).encode() + b"\n"


def differed_text(boot_id: str) -> bytes:
    return f"{boot_id} {DIFFERED}\n".encode()


def read_mark(venv: Path, boot_id: str) -> TorchMark | None:
    """
    Return the mark of *venv*; None: it has none.  One that cannot be read is due.
    """
    if not os.path.lexists(venv / UNCOMPARED):
        return None
    try:
        boot, *numbers = read_below(venv, UNCOMPARED, _MAX).decode().split()
        if numbers == [DIFFERED]:
            return TorchMark(is_due=True, has_differed=boot == boot_id)
        full = tuple(map(int, numbers))
    except (OSError, ValueError):
        return TorchMark(is_due=True)
    is_due = boot != boot_id or not full
    return TorchMark(is_due, () if is_due else full)
