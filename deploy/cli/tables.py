"""
The tables of `inv status`, `inv matrix` and `inv lab.status`; names in them are never cut.
"""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.errors import DeployError, TransportError
from deploy.lab.config import LabStatus
from deploy.release.observe import Observed
from deploy.versions.matrix import Matrix

_COLOUR = {
    "serving": "green",
    "warm": "cyan",
    "starting": "yellow",
    "draining": "yellow",
    "failed": "red",
}


def lab_table(status: LabStatus) -> RenderableType:
    """
    Return the table of `inv lab.status`.
    """
    if not status.hosts:
        return "the lab is down; inv lab.up boots it"
    table = Table("host", "address", "state", "memory", "disk")
    for host in status.hosts:
        sizes = [f"{size} MiB" for size in (host.memory_mib, host.disk_mib)]
        table.add_row(host.name, host.address, str(host.state), *sizes)
    return table


def matrix_table(matrix: Matrix) -> RenderableType:
    """
    Return the table of `inv matrix`.
    """
    table = Table("row", "torch", "CUDA", "driver", "Python", "capabilities", "provisioned here")
    for row in matrix.rows:
        table.add_row(
            row.name,
            row.version,
            row.cuda or "-",
            f">= {row.driver_min}" if row.driver_min else "-",
            row.python,
            ", ".join(row.capabilities) or "-",
            "yes" if row.lock else "not yet",
        )
    return table


def status_table(fleet: str, seen: Mapping[str, Observed | DeployError]) -> RenderableType:
    """
    Return the table of `inv status`.
    """
    table = Table("host", "slot", "version", "state", "weight", "health", "in flight")
    notes: list[str] = []
    for name, found in seen.items():
        if isinstance(found, DeployError):
            word = "unreachable" if isinstance(found, TransportError) else "unreadable"
            table.add_row(name, "-", "-", Text(word, style="red"), "-", "-", "-")
            notes.append(f"{found.what}: {found.why}")
            continue
        for index, slot in enumerate(found.slots):
            weight = "-" if slot.weight_pct is None else f"{slot.weight_pct} %"
            table.add_row(
                "" if index else name,
                slot.slot,
                Text(slot.version or "-"),  # read from the host, so no markup
                Text(slot.state, style=_COLOUR.get(slot.state, "dim")),
                weight,
                slot.health,
                "-" if slot.sessions is None else str(slot.sessions),
            )
        if not found.is_reserve_whole:
            fix = "free space there, then inv provision"
            notes.append(f"{name}: the reserve for a full disk was used: {fix}")
        if found.lease_owner:
            notes.append(f"{name}: a release is under way, lease of {found.lease_owner}")
        elif found.paused:
            notes.append(f"{name}: paused: {found.paused}; inv rollback drops it")
        elif found.unfinished:
            unfinished = found.unfinished_text
            notes.append(f"{name}: ended in the middle: {unfinished}; inv rollback clears it")
    return Group(*([table, *map(Text, notes)] if notes else [table]))
