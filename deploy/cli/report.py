"""
Plans, states and events as text for a person; each also has its JSON.  Nothing here prints.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from deploy.errors import DeployError, TransportError
from deploy.lab.config import LabStatus
from deploy.provision.report import ProvisionReport
from deploy.release.events import ReleaseEvent
from deploy.release.observe import Observed
from deploy.release.plan import ReleasePlan
from deploy.units import format_duration
from deploy.verify.report import VerifyReport
from deploy.versions.matrix import Matrix

_COLOUR = {
    "serving": "green",
    "warm": "cyan",
    "starting": "yellow",
    "draining": "yellow",
    "failed": "red",
}


def provision_text(report: ProvisionReport) -> str:
    """
    Return what provisioning did, and on which hosts it failed.
    """
    would = "would change" if report.check else "changed"
    lines = [f"{c.host}: {would} {c.resource}: {c.change}" for c in report.changes]
    lines += [f"{f.host}: FAILED: {f.why}\n  fix: {f.fix}" for f in report.failed]
    lines.append(
        f"{len(report.ok)} hosts as pinned, {len(report.failed)} not; {len(report.changes)} "
        f"{'changes to make' if report.check else 'changes'} in {format_duration(report.took_s)}"
    )
    return "\n".join(lines)


def verify_text(report: VerifyReport) -> str:
    """
    Return what verification found, one line a broken assertion.
    """
    lines = [f"{f.host}: FAILED {f.test}: {f.why}" for f in report.failed]
    lines.append(
        f"{report.passed} passed, {len(report.failed)} failed, {report.skipped} do not apply, on "
        f"{len(report.hosts)} hosts in {format_duration(report.took_s)}; {report.junit}"
    )
    return "\n".join(lines)


def lab_json(status: LabStatus) -> dict[str, Any]:
    """
    Return the document of `inv lab.status --json`.
    """
    hosts = [
        {
            "host": host.name,
            "address": host.address,
            "state": str(host.state),
            "memory_mib": host.memory_mib,
            "disk_mib": host.disk_mib,
        }
        for host in status.hosts
    ]
    return {"hosts": hosts, "subnet": status.subnet}


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


def matrix_json(matrix: Matrix) -> dict[str, Any]:
    """
    Return the document of `inv matrix --json`.
    """
    return {"rows": [row.model_dump(mode="json") for row in matrix.rows]}


def matrix_table(matrix: Matrix) -> RenderableType:
    """
    Return the table of `inv matrix`.
    """
    name = Column("row", no_wrap=True)
    table = Table(name, "torch", "CUDA", "driver", "Python", "capabilities", "provisioned here")
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


def plan_json(plan: ReleasePlan) -> dict[str, Any]:
    """
    Return the document of `inv plan --json`.
    """
    return {
        "digest": plan.digest,
        "fleet": plan.fleet,
        "bundle": plan.bundle,
        "version": plan.version,
        "canary_pct": plan.canary_pct,
        "waves": [list(wave) for wave in plan.waves],
        "unchanged": list(plan.unchanged),
        "steps": plan.steps(),
    }


def plan_text(plan: ReleasePlan) -> str:
    """
    Return *plan* as an operator reads it, ending with its digest.
    """
    lines = [f"release {plan.version} on {plan.fleet} (bundle {plan.bundle[:12]})"]
    lines += [f"  {line}" for line in plan.steps()]
    return "\n".join([*lines, f"  plan {plan.digest}"])


def status_json(fleet: str, seen: Mapping[str, Observed | DeployError]) -> dict[str, Any]:
    """
    Return the document of `inv status --json`.
    """
    hosts: list[dict[str, Any]] = []
    release = None
    for name, found in seen.items():
        if isinstance(found, DeployError):
            reached = not isinstance(found, TransportError)
            error = found.as_json()
            hosts.append({"host": name, "reachable": reached, "slots": [], "error": error})
            continue
        slots = [
            {
                "slot": slot.slot,
                "version": slot.version,
                "bundle": slot.bundle,
                "state": slot.state,
                "weight_pct": slot.weight_pct,
                "health": slot.health,
                "sessions": slot.sessions,
            }
            for slot in found.slots
        ]
        good = [{"release": g.release, "version": g.version} for g in found.good]
        hosts.append({"host": name, "reachable": True, "slots": slots, "good": good})
        if found.lease_owner or found.unfinished or found.paused:
            release = release or {
                "owner": found.lease_owner,
                "unfinished": found.unfinished,
                "paused": found.paused,
            }
    return {"fleet": fleet, "hosts": hosts, "release": release}


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
                slot.version or "-",
                Text(slot.state, style=_COLOUR.get(slot.state, "dim")),
                weight,
                slot.health,
                "-" if slot.sessions is None else str(slot.sessions),
            )
        if found.lease_owner:
            notes.append(f"{name}: a release is under way, lease of {found.lease_owner}")
        elif found.paused:
            notes.append(f"{name}: paused: {found.paused}; inv rollback drops it")
        elif found.unfinished:
            notes.append(f"{name}: ended in the middle: {found.unfinished}; inv rollback clears it")
    return Group(*([table, *map(Text, notes)] if notes else [table]))


def event_line(event: ReleaseEvent) -> str:
    """
    Return *event* as one line of a timeline.
    """
    return f"{event.at:%H:%M:%S}  {event.host or '':8} {event.name:18} {event.text}"
