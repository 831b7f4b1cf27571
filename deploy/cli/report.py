"""
Plans, states and events as text and as JSON documents.  Nothing here prints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deploy.bundle.store import Bundle
from deploy.errors import DeployError, TransportError
from deploy.foreign_text import visible
from deploy.lab.config import LabStatus
from deploy.provision.report import ProvisionReport
from deploy.release.desired import Ending
from deploy.release.events import ReleaseEvent, ReleaseOutcome
from deploy.release.findings import Finding, find
from deploy.release.history import History
from deploy.release.observe import Observed
from deploy.release.plan import ReleasePlan
from deploy.units import format_duration
from deploy.verify.report import VerifyReport
from deploy.versions.matrix import Matrix

_WHY_LIMIT = 4000  # characters; a reason may name all hosts of a fleet


def provision_text(report: ProvisionReport) -> str:
    """
    Return the sum of a provisioning run; its changes and failures were printed as they came.
    """
    rebooted = sum(need.rebooted for need in report.reboots)
    hosts = len(report.ok) + len(report.failed)
    total = (
        f"{len(report.as_pinned)} of {hosts} hosts as pinned; {len(report.changes)} "
        f"{'changes to make' if report.check else 'changes'} in {format_duration(report.took_s)}"
        f"{f'; {rebooted} rebooted' if rebooted else ''}"
    )
    left = [visible(str(need), limit=_WHY_LIMIT) for need in report.reboots if not need.rebooted]
    hint = ["inv provision --waves 1 reboots them, one after the other"] if left else []
    return "\n".join([*left, *hint, total])


def failure_text(host: str, why: str, fix: str) -> str:
    """
    Return why provisioning failed on *host*, and what to do.
    """
    return f"{visible(host)}: FAILED: {visible(why, limit=_WHY_LIMIT)}\n  fix: {visible(fix)}"


def warning_text(host: str, about: str, why: str, fix: str) -> str:
    """
    Return what is wrong on *host* and did not stop the run.
    """
    first = f"{visible(host)}: warning: {visible(about)}: {visible(why, limit=_WHY_LIMIT)}"
    return f"{first}\n  fix: {visible(fix)}"


def verify_text(report: VerifyReport) -> str:
    """
    Return the sum of a verification; the error names each assertion that does not hold.
    """
    return (
        f"{report.passed} passed, {len(report.failed)} failed, {report.skipped} do not apply, on "
        f"{len(report.hosts)} hosts in {format_duration(report.took_s)}; {report.junit}"
    )


def outcome_text(outcome: ReleaseOutcome) -> str:
    """
    Return how a release or rollback ended, on one line to paste elsewhere.
    """
    words = {
        Ending.PROMOTED: f"RELEASED {visible(outcome.version)}",
        Ending.REVERTED: f"ROLLED BACK at {outcome.share}",
        Ending.ROLLED_BACK: f"ROLLED BACK to {visible(outcome.version)}",
        Ending.PAUSED: f"HELD at {outcome.share}",
        Ending.NOOP: "NOTHING TO DO",
    }
    reason = visible(outcome.reason, limit=_WHY_LIMIT)
    return f"{words[outcome.ending]}: {reason} ({visible(outcome.release)})"


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


def matrix_json(matrix: Matrix) -> dict[str, Any]:
    """
    Return the document of `inv matrix --json`.
    """
    rows = [row.model_dump(mode="json", exclude={"runtime_lock"}) for row in matrix.rows]
    return {"rows": rows}


def bundle_json(bundle: Bundle, version: str) -> dict[str, Any]:
    """
    Return the document of `inv bundle --json`.
    """
    return {"bundle": bundle.digest, "version": version, "path": str(bundle.directory)}


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
        "actions": [asdict(action) for action in plan.actions],
    }


def plan_text(plan: ReleasePlan) -> str:
    """
    Return *plan* as an operator reads it, ending with its digest.
    """
    lines = [
        f"release {visible(plan.version)} on {visible(plan.fleet)} (bundle {plan.bundle[:12]})"
    ]
    lines += [f"  {visible(line, limit=_WHY_LIMIT)}" for line in plan.steps()]
    return "\n".join([*lines, f"  plan {plan.digest}"])


def status_json(
    fleet: str,
    seen: Mapping[str, Observed | DeployError],
    findings: Sequence[Finding] | None = None,
) -> dict[str, Any]:
    """
    Return the document of `inv status --json`.

    Args:
        findings: None: what `find` returns for *seen*.
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
        used = {} if found.is_reserve_whole else {"reserve": "used"}
        shown = {"certificate": certificate_json(found)} if found.has_tls else {}
        reasons = [{"cause": r.cause, "observed": r.observed} for r in found.reboot_reasons]
        reboot = {"reboot": reasons} if reasons else {}
        host = {"host": name, "reachable": True, "slots": slots, "good": good}
        hosts.append({**host, **used, **shown, **reboot})
        if found.lease_owner or found.unfinished or found.paused:
            release = release or {
                "owner": found.lease_owner,
                "unfinished": found.unfinished_text,
                "paused": found.paused,
            }
    of_seen = find(seen) if findings is None else findings
    return {
        "fleet": fleet,
        "hosts": hosts,
        "release": release,
        "findings": [finding.as_json() for finding in of_seen],
    }


def certificate_json(current: Observed) -> dict[str, Any] | None:
    """
    Return the certificate that the public port of a host shows; None where it shows none.
    """
    shown = current.certificate
    if shown is None:
        return None
    return {
        "names": list(shown.names),
        "issuer": shown.issuer,
        "not_after": f"{shown.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "sha256": shown.sha256,
    }


def history_json(history: History, errors: Mapping[str, DeployError]) -> dict[str, Any]:
    """
    Return the document of `inv history --json`.
    """
    return {
        "releases": [past.as_json() for past in history.releases],
        "own_ways_back": [own.as_json() for own in history.own_ways_back],
        "heads": {
            host: {"seq": head.seq, "sha256": head.sha256} for host, head in history.heads.items()
        },
        "broken": {
            host: {"line": found.seq, "damage": str(found.damage), "why": found.why}
            for host, found in history.broken.items()
        },
        "unreadable": {host: error.as_json() for host, error in errors.items()},
    }


def event_line(event: ReleaseEvent) -> str:
    """
    Return *event* as one line of a timeline.
    """
    text = visible(event.text, limit=_WHY_LIMIT)
    return f"{event.at:%H:%M:%S}  {visible(event.host or ''):8} {event.name:18} {text}"
