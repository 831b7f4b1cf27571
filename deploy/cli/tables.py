"""
The tables of `inv status`, `history` and `lab.status`; names in them are never cut.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from deploy.cli.grid import Cell, Grid, Style
from deploy.errors import DeployError, TransportError
from deploy.foreign_text import quoted
from deploy.lab.config import LabStatus
from deploy.release.findings import EXPIRES_SOON, Finding, find
from deploy.release.history import History
from deploy.release.observe import Observed

_COLOUR: Mapping[str, Style] = MappingProxyType(
    {
        "serving": "green",
        "warm": "cyan",
        "starting": "yellow",
        "draining": "yellow",
        "failed": "red",
    }
)

_OUTCOMES: Mapping[str, Style] = MappingProxyType(
    {"promoted": "green", "rolled_back": "green", "paused": "yellow", "held": "yellow"}
)
_SHOWN = 30  # releases; --json has all


def lab_table(status: LabStatus) -> Grid | str:
    """
    Return the table of `inv lab.status`.
    """
    if not status.hosts:
        return "the lab is down; inv lab.up boots it"
    table = Grid(("host", "address", "state", "memory", "disk"))
    for host in status.hosts:
        sizes = [f"{size} MiB" for size in (host.memory_mib, host.disk_mib)]
        table.add_row(host.name, host.address, str(host.state), *sizes)
    return table


def status_table(
    fleet: str,
    seen: Mapping[str, Observed | DeployError],
    findings: Sequence[Finding] | None = None,
    now: datetime | None = None,
) -> Grid:
    """
    Return the table of `inv status`, with the findings below it.

    Args:
        findings: None: what `find` returns for *seen*.
        now: Time from which the days of certificates are counted; None: they are not shown.
    """
    with_tls = now is not None and any(isinstance(s, Observed) and s.has_tls for s in seen.values())
    columns = ("host", "slot", "version", "state", "weight", "health", "in flight")
    table = Grid((*columns, "certificate") if with_tls else columns)
    for name, found in seen.items():
        if isinstance(found, DeployError):
            word = "unreachable" if isinstance(found, TransportError) else "unreadable"
            table.add_row(name, "-", "-", Cell(word, "red"), "-", "-", "-", *["-"][: int(with_tls)])
            continue
        for index, slot in enumerate(found.slots):
            weight = "-" if slot.weight_pct is None else f"{slot.weight_pct} %"
            table.add_row(
                "" if index else name,
                slot.slot,
                slot.version or "-",
                Cell(slot.state, _COLOUR.get(slot.state, "dim")),
                weight,
                slot.health,
                "-" if slot.sessions is None else str(slot.sessions),
                *([_certificate(found, now) if index == 0 else ""] if with_tls and now else []),
            )
        if found.lease_owner:
            table.notes.append(
                f"{name}: a release is under way, lease of {quoted(found.lease_owner)}"
            )
    for finding in find(seen) if findings is None else findings:
        table.notes.append(f"{finding.host}: {finding.what}; {finding.fix}")
    return table


def _certificate(current: Observed, now: datetime) -> str | Cell:
    """
    Return the days that the certificate of a host lasts; red where it has to be renewed.
    """
    if not current.has_tls:
        return "-"
    if current.certificate is None:
        return Cell("none", "red")
    left = current.certificate.not_after - now
    days = f"{left.days} days" if left.total_seconds() > 0 else "expired"
    return Cell(days, "green" if left >= EXPIRES_SOON else "red")


def history_table(history: History, errors: Mapping[str, DeployError]) -> Grid:
    """
    Return the table of `inv history`, newest first.
    """
    columns = ("release", "kind", "began", "ended", "actor", "outcome", "hosts", "reason")
    table = Grid(columns)
    for past in history.releases[:_SHOWN]:
        outcome = past.outcome or ("not ended" if past.hosts else "disputed")
        table.add_row(
            past.release,
            past.kind,
            past.began_at or "-",
            past.ended_at or "-",
            past.actor or "-",
            Cell(outcome, _OUTCOMES.get(outcome, "red")),
            ", ".join(past.hosts) or "-",
            past.reason or "-",
        )
        for host, words in past.others.items():
            table.notes.append(f"{past.release}: {host} says otherwise: {quoted(words)}")
    if len(history.releases) > _SHOWN:
        table.notes.append(f"{len(history.releases) - _SHOWN} earlier ones: --json has them")
    for own in history.own_ways_back[:_SHOWN]:
        table.notes.append(
            f"{own.host}: by itself from {own.at} to {own.ended_at or '?'}: {own.step}, "
            f"release {quoted(own.release or '-')}"
        )
    for host, found in history.broken.items():
        table.notes.append(
            f"{host}: its journal was {found.damage} at line {found.seq}: {found.why}"
        )
    for error in errors.values():
        table.notes.append(f"{error.what}: {error.why}")
    return table
